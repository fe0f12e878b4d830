"""Learnt positions of a vision transformer at another resolution than they were trained at."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from torch.nn import functional as F

from supernet.weights.naming import State

_POSITIONS = "pos_embed"


def with_positions(given: State, expected: Mapping[str, torch.Tensor]) -> State:
    """Resample `pos_embed` (1, N, C) to the rows that are expected, where both are square grids.

    A row for the class token, which comes first, stays. Bicubic with antialiasing, as timm does.
    What is no square grid is left as it is, for the check of shapes to name.
    """
    if _POSITIONS not in given or _POSITIONS not in expected:
        return given
    table, wanted = given[_POSITIONS], tuple(expected[_POSITIONS].shape)
    if tuple(table.shape) == wanted or table.dim() != 3 or table.shape[2] != wanted[2]:
        return given
    for first in (0, 1):
        old, new = _side(table.shape[1] - first), _side(wanted[1] - first)
        if old and new:
            return {**given, _POSITIONS: _resampled(table, first, old, new)}
    return given


def _side(count: int) -> int:
    """The side of a square of so many patches; 0 where it is none."""
    side = isqrt(max(0, count))
    return side if side * side == count else 0


def _resampled(table: torch.Tensor, first: int, old: int, new: int) -> torch.Tensor:
    grid = table[:, first:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    rows = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)
    return torch.cat((table[:, :first].float(), rows), 1)
