"""A site's weight as one flat run of memory: what is copied, kept resident, or streamed.

Weight (channels-last order: out, kernel rows, kernel columns, in) and bias lie behind each other,
so that a slice is one copy, and a staging buffer takes any slice that is small enough.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from subnetact.norms import Affine
from subnetact.program import ConvSite

_ALIGN = 64  # elements: the bias starts on a boundary that every kernel takes
_BLOCK_BYTES = 512  # what CUDA's allocator rounds up to


class SliceLayout(NamedTuple):
    """Where weight and bias of a slice lie in its flat memory."""

    weight_shape: tuple[int, ...]
    has_bias: bool
    dtype: torch.dtype

    @property
    def _weight_room(self) -> int:
        return -(-math.prod(self.weight_shape) // _ALIGN) * _ALIGN

    @property
    def num_elements(self) -> int:
        """Length of the flat memory."""
        return self._weight_room + (self.weight_shape[0] if self.has_bias else 0)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes on the device."""
        return -(-self.num_elements * self.dtype.itemsize // _BLOCK_BYTES) * _BLOCK_BYTES

    def views(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (weight, bias) inside `flat`: contiguous in channels-last order, no copy."""
        out, into, *kernel = self.weight_shape
        size = math.prod(self.weight_shape)
        weight = flat[:size].view(out, *kernel, into).permute(0, 3, 1, 2)
        start = self._weight_room
        return weight, flat[start : start + out] if self.has_bias else None


def slice_layout(site: ConvSite, dtype: torch.dtype, *, is_folded: bool) -> SliceLayout:
    """Return the layout of a site's slice; a folded one always has a bias."""
    return SliceLayout(site.geometry.weight_shape, is_folded or site.has_bias, dtype)


def fill_slice(
    flat: torch.Tensor,
    layout: SliceLayout,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: Affine | None,
) -> None:
    """Write a site's weight (O, I, k, k) and bias into host memory; a norm is folded into both."""
    if norm is not None:
        scale, shift = norm
        weight = weight * scale.view(-1, 1, 1, 1)  # (O, I, k, k), float32 until it is stored
        bias = shift if bias is None else torch.addcmul(shift, bias, scale)
    into_weight, into_bias = layout.views(flat)
    into_weight.copy_(weight)
    if into_bias is not None:
        assert bias is not None, "the layout says so"
        into_bias.copy_(bias)
