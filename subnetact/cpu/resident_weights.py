"""The supernet's weights as they stay resident: in 32 bit, or convolutions in 16 bit.

A convolution's weight may be kept as float16: it is widened when a slice is packed, once, or when
a view is run, on every call. What 16 bit does to accuracy is measured before it is used
(`supernet precision`, docs/actuation.md); what does not fit float16 stays as it is. Everything but
convolutions (norms, linear layers, embeddings) is small in convolutional families and stays wide.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from supernet.slicing import leading_slice

_LARGEST = torch.finfo(torch.float16).max


def resident_weights(state: Mapping[str, torch.Tensor], bits: int = 32) -> dict[str, torch.Tensor]:
    """Return `state` as it is kept: convolutions channels-last, in `bits` (32 or 16) bits.

    Raises ValueError for another number of bits.
    """
    if bits not in (16, 32):
        raise ValueError(f"weights are kept in {bits} bits, allowed 16, 32")
    return {name: _kept(tensor, bits) for name, tensor in state.items()}


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return float32 values of a kept tensor: itself, or a copy of a 16-bit one."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def wide_slice(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 leading slice of a kept tensor: a view, or a copy of a 16-bit one."""
    return widened(leading_slice(tensor, shape))


def _kept(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    if tensor.dim() != 4:
        return tensor
    if bits == 16 and tensor.dtype == torch.float32 and bool((tensor.abs() <= _LARGEST).all()):
        tensor = tensor.half()
    return tensor.contiguous(memory_format=torch.channels_last)
