"""What follows a convolution whose norm is not folded in: scale, shift, addition, activation.

`in_parts` is the plain twin of `pointwise_kernel`, which is one launch where Triton compiles it;
`fault_of` holds such a kernel to it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

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
_ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}
_NEAR_ZERO = 1e-4

# (result, norm, other or None, activation) -> output; `in_parts` or one kernel
Pointwise = Callable[[torch.Tensor, Affine, torch.Tensor | None, str | None], torch.Tensor]


def in_parts(
    y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
) -> torch.Tensor:
    """Return act(y * scale + shift + other) in y's memory, (B, C, H, W); a call for each part.

    The vectors may be of other dtypes than y; scale and shift are one call whatever they are.
    """
    scale, shift = (vector.view(-1, 1, 1) for vector in norm)
    torch.addcmul(shift, y, scale, out=y)
    return ACTIVATIONS[act](y if other is None else y.add_(other))


def fault_of(kernel: Pointwise, device: torch.device | str) -> str:
    """Hold a kernel to `in_parts` in float32, in every dtype; say where it is wrong, or "".

    Numbers are drawn on the host: a device's own generator does not work any more where a capture
    was invalidated before, and a user's draws stay as they are.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 3, 24, 5, 7, generator=generator)
    norm = Affine(*torch.randn(2, 24, generator=generator).half().to(device).unbind())
    for (dtype, rounding), act in product(_ROUNDING.items(), ACTIVATIONS):
        y, other = (t.to(device, dtype).to(memory_format=torch.channels_last) for t in drawn)
        expected = in_parts(y.to(torch.float32, copy=True), norm, other.float(), act)
        got = kernel(y, norm, other, act).float()
        if not torch.allclose(got, expected, rtol=rounding, atol=_NEAR_ZERO):
            return f"our kernel gives a wrong result for {act} in {dtype}"
    return ""
