"""Weights of few values: binary, ternary, and signed binary, a function of the whole tensor each.

| name | values of a row | bits | source |
|---|---|--:|---|
| `binary` | -1 and 1 | 1 | BWN (Rastegari et al., XNOR-Net, ECCV 2016) |
| `ternary` | -1, 0 and 1 | 2 | TWN (Li et al., 2016) |
| `signed_binary` | 0 and 1 in even rows, 0 and -1 in odd ones | 1 | PLUM (Kuhar et al., 2024) |

A row is an output channel's filter. Thresholds and scales are taken on the supernet's full filter,
so a weight has one value whatever subnet reads it, and one packed tensor serves all widths.

Differences from PLUM: signs alternate from channel to channel, where its first half of the filters
is positive and the other negative: a narrow subnet, which keeps leading channels, would have one
sign alone. And a scale is kept, which PLUM leaves to the BatchNorm behind: decoders have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

QUANTISERS = ("binary", "ternary", "signed_binary")
SCALED_BY_ROW = 256
"""Weights that a row has at least for a scale of its own: its 16 bits add a sixteenth to each."""

_SIGNED_THRESHOLD = 0.05  # of a filter's largest weight (PLUM)
_TERNARY_THRESHOLD = 0.7  # of the mean size of a filter's weights (TWN)


class Quantised(NamedTuple):
    """A weight as codes -1, 0, 1 (int8, the weight's shape) times scales.

    `scale` is float16, (rows,) or, for a tensor whose rows are short, (1,).
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def dequantised(self) -> torch.Tensor:
        """The weight that these are, float32."""
        scale = self.scale.float().view(-1, *[1] * (self.codes.dim() - 1))
        return self.codes.float() * scale


def quantise(weight: torch.Tensor, quantiser: str) -> Quantised:
    """Quantise a whole (out, in, ...) weight. Raises ValueError for an unknown quantiser."""
    if quantiser not in _CODES:
        raise ValueError(f"quantiser is {quantiser!r}, allowed {', '.join(QUANTISERS)}")
    weight = weight.detach().float()
    rows = weight.flatten(1)
    codes = _CODES[quantiser](rows)
    return Quantised(codes.view(weight.shape), _scale_of(rows, codes))


def row_signs(num_rows: int) -> torch.Tensor:
    """(rows,) int8: 1 in even rows and -1 in odd ones, so that every prefix is balanced."""
    signs = torch.ones(num_rows, dtype=torch.int8)
    signs[1::2] = -1
    return signs


def _binary(rows: torch.Tensor) -> torch.Tensor:
    return torch.where(rows >= 0, 1, -1).to(torch.int8)


def _ternary(rows: torch.Tensor) -> torch.Tensor:
    size = rows.abs()
    kept = size >= _TERNARY_THRESHOLD * size.mean(1, keepdim=True)
    return (kept * rows.sign()).to(torch.int8)


def _signed_binary(rows: torch.Tensor) -> torch.Tensor:
    threshold = _SIGNED_THRESHOLD * rows.abs().amax(1, keepdim=True)
    signs = row_signs(len(rows)).to(rows.device)[:, None]
    return ((rows * signs >= threshold) & (rows != 0)).to(torch.int8) * signs


_CODES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "binary": _binary,
    "ternary": _ternary,
    "signed_binary": _signed_binary,
}


def _scale_of(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The mean size of the weights that are kept, rounded to float16: what is stored is used."""
    kept = codes != 0
    sizes = torch.where(kept, rows.abs(), 0.0)
    if rows.shape[1] >= SCALED_BY_ROW:
        total, count = sizes.sum(1), kept.sum(1)
    else:
        total, count = sizes.sum().view(1), kept.sum().view(1)
    return (total / count.clamp_min(1)).half()
