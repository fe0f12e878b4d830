"""The plain twin's parts (`pointwise.in_parts`) as one Triton kernel; imported where Triton is.

Computes in float32 and rounds once. One thread takes one number of channels-last memory, so that
neighbours read neighbouring channels' scales.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from subnetact.cuda.pointwise import in_parts
from subnetact.norms import Affine

triton: Any = importlib.import_module("triton")  # an optional extra to a type checker
tl: Any = importlib.import_module("triton.language")

_BLOCK = 1024
_MAX_NUMBERS = 2**31 - _BLOCK  # an index is an int32


def joined(
    y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
) -> torch.Tensor:
    """See `in_parts`: the same in one launch, and in parts where memory is not channels-last."""
    tensors = (y,) if other is None else (y, other)
    lies_alike = all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
    numbers = y.numel()
    if not lies_alike or numbers > _MAX_NUMBERS or (other is not None and other.shape != y.shape):
        return in_parts(y, norm, other, act)
    grid = (triton.cdiv(numbers, _BLOCK),)
    _scale_shift_kernel[grid](
        y,
        norm.scale,
        norm.shift,
        y if other is None else other,
        numbers,
        y.shape[1],
        act=act or "",
        adds=other is not None,
        block=_BLOCK,
    )
    return y


@triton.jit
def _scale_shift_kernel(
    y,
    scale,
    shift,
    other,
    numbers,
    channels,
    # What Triton compiles in it reads off these; its types are unknown where it is not installed.
    act: tl.constexpr,  # type: ignore[valid-type]
    adds: tl.constexpr,  # type: ignore[valid-type]
    block: tl.constexpr,  # type: ignore[valid-type]
):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < numbers
    channel = at % channels
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.load(scale + channel).to(tl.float32)
    value = value + tl.load(shift + channel).to(tl.float32)
    if adds:
        value = value + tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    # NaN stays NaN, as in torch: the engine tells it by its output.
    if act == "relu":
        value = tl.where(value < 0.0, 0.0, value)
    if act == "relu6":
        value = tl.where(value < 0.0, 0.0, tl.where(value > 6.0, 6.0, value))
    if act == "hard_swish" or act == "hard_sigmoid":
        gate = value + 3.0
        gate = tl.where(gate < 0.0, 0.0, tl.where(gate > 6.0, 6.0, gate)) / 6.0
        value = value * gate if act == "hard_swish" else gate
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)
