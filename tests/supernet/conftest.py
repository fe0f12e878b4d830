"""A tiny trained-looking supernet: random weights and statistics that differ per channel."""

from __future__ import annotations

import pytest
import torch

from supernet import SupernetDefinition, define_supernet


@pytest.fixture(scope="session")
def tiny() -> SupernetDefinition:
    """144 archs, 8x8 grey images, under 10,000 parameters."""
    return define_supernet("resnet_tiny")


@pytest.fixture
def tiny_state(tiny: SupernetDefinition) -> dict[str, torch.Tensor]:
    """A state_dict with random weights and running statistics."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in tiny.build().state_dict().items():
        if name.endswith("running_var"):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.is_floating_point():
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.3
        else:
            state[name] = tensor
    return state
