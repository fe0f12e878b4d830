"""Low-bit weights while a supernet trains: quantised in the forward pass, latent ones underneath.

The latent weights are the float subnets' own. A low-bit pass reads what quantising them gives; its
gradient goes straight through to them, but for latent weights beyond 1, which it would only drive
further (BinaryConnect, NeurIPS 2015; PLUM, TMLR 2024). Scales are taken as constants.

Difference from PLUM: gradients are not clipped one by one, the optimizer bounds the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from supernet.definition import SupernetDefinition
from supernet.low_bit.covered import low_bit_names
from supernet.low_bit.quantisers import quantise

_LARGEST = 1.0


def with_low_bit(
    parameters: Mapping[str, torch.Tensor], definition: SupernetDefinition, quantiser: str
) -> dict[str, torch.Tensor]:
    """Return the parameters with low-bit weights where layers have them, differentiable.

    Whole tensors are quantised, before any slice: a weight has one value at every width.
    """
    low_bit = {
        name: StraightThrough.apply(parameters[name], quantiser)
        for name in low_bit_names(definition)
    }
    return {**parameters, **low_bit}


class StraightThrough(torch.autograd.Function):
    """Quantise forward, identity backward where the latent weight is at most 1 in size."""

    @staticmethod
    def forward(ctx: Any, latent: torch.Tensor, quantiser: str) -> torch.Tensor:
        ctx.save_for_backward(latent)
        weight = quantise(latent, quantiser).dequantised()
        # In the latent's memory format, which is the kernels' choice.
        return torch.empty_like(latent).copy_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (latent,) = ctx.saved_tensors
        return gradients[0] * (latent.abs() <= _LARGEST), None
