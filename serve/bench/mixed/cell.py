"""`MixedCell`: what part `mixed` measures together, and the figures that it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """One figure of a cell: `name` follows `serving/mixed/`, `asked` is the bar (empty: none)."""

    name: str
    value: float
    unit: str
    asked: str
    detail: str


class MixedCell(NamedTuple):
    """One cell: what is measured together."""

    name: str
    measure: Callable[[], Sequence[Finding]]
