"""Smaller kernels from the largest one of each depthwise convolution, by centre crop.

Every kernel size is a parameter of its own (docs/decisions/004-elastic-kernels.md). The small ones
have had no gradient when shrinking begins, so they start as the centre of the trained large one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from supernet.definition import SupernetDefinition
from supernet.layers.blocks import KernelChoice


@torch.no_grad()
def crop_kernels(parameters: Mapping[str, torch.Tensor], definition: SupernetDefinition) -> None:
    """Overwrite all but the largest kernel of each choice, in place."""
    for name, module in definition.on_meta().named_modules():
        if not isinstance(module, KernelChoice):
            continue
        *smaller, largest = sorted(module, key=int)
        source = parameters[f"{name}.{largest}.weight"]  # (C, 1, K, K)
        for size in smaller:
            edge = (int(largest) - int(size)) // 2
            inner = slice(edge, edge + int(size))
            parameters[f"{name}.{size}.weight"].copy_(source[..., inner, inner])
