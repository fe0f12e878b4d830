"""A supernet with random weights and statistics: time and memory do not depend on their values."""

from __future__ import annotations

import numpy as np
import torch

from supernet.arch import Arch
from supernet.definition import SupernetDefinition


def random_state(definition: SupernetDefinition) -> dict[str, torch.Tensor]:
    """Return a supernet's tensors with random weights, convolutions channels-last."""
    net = definition.build().to(memory_format=torch.channels_last)
    return {name: tensor.detach() for name, tensor in net.state_dict().items()}


def statistics_of(
    definition: SupernetDefinition, arch: Arch, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Return random running statistics of one subnet."""
    return {
        name: torch.from_numpy(rng.uniform(0.5, 1.5, shape).astype(np.float32))
        for name, shape in definition.buffer_shapes(arch).items()
        if not name.endswith("num_batches_tracked")
    }
