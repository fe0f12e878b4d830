"""Descriptions are cheap: measured with wide margins, the figures themselves are in the docs."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch

from supernet import SupernetDefinition, define_supernet
from supernet.describe import describe
from supernet.layers.blocks import ConvNormAct


def test_a_block_is_built_once_while_describing_and_anew_otherwise() -> None:
    shared = []
    net = describe(lambda: shared.append([ConvNormAct(3, 8), ConvNormAct(3, 8)]) or shared[0][0])
    assert shared[0][0] is shared[0][1]
    assert net.parameters["conv.weight"] == (8, 3, 3, 3)
    first, second = ConvNormAct(3, 8), ConvNormAct(3, 8)
    assert first is not second
    assert first.conv.weight.device.type == "cpu"


def test_a_description_names_what_the_network_holds_in_its_order(tiny: SupernetDefinition) -> None:
    for arch in (tiny.space.smallest, tiny.space.largest):
        net = tiny.on_meta(arch)
        assert list(tiny.parameter_shapes(arch).items()) == [
            (name, tuple(p.shape)) for name, p in net.named_parameters()
        ]
        assert list(tiny.buffer_shapes(arch)) == [name for name, _ in net.named_buffers()]


@pytest.mark.alone
def test_descriptions_take_little_time_and_memory() -> None:
    definition = define_supernet("ofa_resnet50", num_classes=11)
    rng = np.random.default_rng(0)
    space = definition.space
    for _ in range(300):  # most distinct blocks are seen
        definition.parameter_shapes(space.sample(rng))
    archs = [space.sample(rng) for _ in range(200)]
    tracemalloc.start()
    for arch in archs:
        definition.parameter_shapes(arch)
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used_bytes * 5 < 50e6, "1,000 descriptions fit in tens of MB, without weights"
    times = []
    for arch in [space.sample(rng) for _ in range(200)]:
        start = time.perf_counter()
        definition.parameter_shapes(arch)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 5e-3, "0.3 ms where it was measured"
    assert torch.get_default_device().type == "cpu"
