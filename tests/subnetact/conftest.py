"""A tiny checkpoint with random weights: every arch of a ladder has its own statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from supernet import (
    Arch,
    Checkpoint,
    InputSpec,
    ServedSubnet,
    SupernetDefinition,
    cost,
    define_supernet,
    load_checkpoint,
    save_checkpoint,
)


def random_statistics(
    definition: SupernetDefinition, arch: Arch, seed: int
) -> dict[str, torch.Tensor]:
    """Statistics that no other subnet has."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        for name, shape in definition.buffer_shapes(arch).items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture(scope="session")
def statistics_of(tiny: SupernetDefinition) -> Callable[[Arch, int], dict[str, torch.Tensor]]:
    """Statistics of an arch, drawn from a seed."""
    return partial(random_statistics, tiny)


@pytest.fixture(scope="session")
def tiny() -> SupernetDefinition:
    return define_supernet("resnet_tiny")


@pytest.fixture(scope="session")
def checkpoint(tiny: SupernetDefinition, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    archs = tiny.space.ladder()[:3]
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(t.shape, generator=generator) * 0.3 if t.is_floating_point() else t
        for name, t in tiny.build().state_dict().items()
    }
    save_checkpoint(
        Checkpoint(
            name="tiny",
            definition=tiny,
            input=InputSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.25,)),
            state={n: t.abs() + 0.5 if n.endswith("running_var") else t for n, t in state.items()},
            norm_statistics={
                a.subnet_id: random_statistics(tiny, a, i) for i, a in enumerate(archs)
            },
            subnets=tuple(
                ServedSubnet(
                    arch=a, accuracy=0.5 + i / 10, ci95=(0.4, 0.9), **cost(tiny, a)._asdict()
                )
                for i, a in enumerate(archs)
            ),
        ),
        folder,
    )
    return load_checkpoint(folder)
