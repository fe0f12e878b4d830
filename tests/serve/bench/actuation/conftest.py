"""A network that every part of the benchmark measures in seconds."""

import pytest
import torch

from serve.bench.actuation.bench_net import BenchNet
from serve.bench.actuation.random_supernet import random_state
from supernet.definition import define_supernet
from supernet.input import InputSpec


@pytest.fixture(scope="session")
def tiny_net() -> BenchNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        definition = define_supernet("resnet_tiny")
        state = random_state(definition)
    space = definition.space
    archs = tuple(space.ladder()[:4])
    return BenchNet(
        name="tiny",
        definition=definition,
        state=state,
        input=InputSpec(channels=1, height=8, width=8, mean=(0.4,), std=(0.2,)),
        sizes={"min": space.smallest, "max": space.largest},
        served=archs,
    )
