"""Taking the leading slice of a tensor: the one operation that all elasticity comes down to."""

from __future__ import annotations

import torch


def leading_slice(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the view of `tensor` whose leading part has `shape`; same storage, no copy.

    Raises ValueError when `shape` does not fit inside the tensor.
    """
    if tensor.shape == shape:
        return tensor
    if tensor.dim() != len(shape) or any(n > m for n, m in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"shape {shape} is not a leading slice of {tuple(tensor.shape)}")
    return tensor[tuple(slice(n) for n in shape)]
