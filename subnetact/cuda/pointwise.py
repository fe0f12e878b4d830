"""What follows a convolution whose norm is not folded in: scale, shift, addition, activation.

`in_parts` is the plain twin of `pointwise_kernel`, which is one launch where Triton compiles it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from subnetact.norms import Affine

ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu_,
    "relu6": lambda y: F.hardtanh_(y, 0.0, 6.0),
    "hard_swish": lambda y: F.hardswish(y, inplace=True),
    "hard_sigmoid": lambda y: F.hardsigmoid(y, inplace=True),
}
"""Activations in place, by the name that a site gives."""


def in_parts(
    y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
) -> torch.Tensor:
    """Return act(y * scale + shift + other) in y's memory, (B, C, H, W); a call for each part.

    The vectors may be of other dtypes than y; scale and shift are one call whatever they are.
    """
    scale, shift = (vector.view(-1, 1, 1) for vector in norm)
    torch.addcmul(shift, y, scale, out=y)
    return ACTIVATIONS[act](y if other is None else y.add_(other))
