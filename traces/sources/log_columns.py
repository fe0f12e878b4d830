"""`LogColumns`: which columns of a request log are read, as what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traces.sources.columns import Table
from traces.sources.units import UNITS
from traces.sources.where import where_columns
from traces.trace import FloatArray, TraceError

_KINDS = {"prompt_tokens": "count", "output_tokens": "count", "size": "size"}
"""Of columns that a trace keeps; all others are texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogColumns:
    """The columns of times and of deadlines, those that a trace keeps, and those that choose rows.

    `kept` has the log's names by the trace's. Raises TraceError for a unit that is none, a least
    deadline without deadlines, and a column that is asked for as two things.
    """

    time: str
    unit: str
    slo: str | None
    slo_unit: str
    slo_min_ms: float | None
    kept: Mapping[str, str]
    where: str | None

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        check_choice("slo_unit", self.slo_unit, tuple(UNITS)[:-1])
        if self.slo is None and self.slo_min_ms is not None:
            raise TraceError("slo_min goes with slo, the column of deadlines")
        self.kinds()

    def kinds(self) -> dict[str, str]:
        """Return the kind of each column, as `read_table` takes them."""
        asked = [(self.time, "time" if self.unit == "iso" else "number")]
        if self.slo is not None:
            asked.append((self.slo, "number"))
        asked += where_columns(self.where).items()
        asked += [(name, _KINDS.get(ours, "text")) for ours, name in self.kept.items()]
        kinds: dict[str, str] = {}
        for name, kind in asked:
            if kinds.setdefault(name, kind) != kind:
                raise TraceError(
                    f"column {name!r} is asked for as {kinds[name]} and as {kind}; "
                    "a column is one of them"
                )
        return kinds

    def times_s(self, table: Table) -> FloatArray:
        """Return when each request comes (s)."""
        return table.seconds(self.time, UNITS[self.unit])

    def of_trace(self, path: Path | str, table: Table) -> dict[str, Any]:
        """Return the trace's columns. Raises TraceError for a deadline that is not above 0."""
        kinds = self.kinds()
        columns: dict[str, Any] = {
            ours: table.column(name, kinds[name]) for ours, name in self.kept.items()
        }
        if self.slo is not None:
            slo_s = table.seconds(self.slo, UNITS[self.slo_unit])
            if self.slo_min_ms is not None:
                slo_s = np.maximum(slo_s, self.slo_min_ms * 1e-3)
            table.refuse(path, slo_s <= 0, self.slo, "above 0 (slo_min lifts shorter ones)")
            columns["slo_s"] = slo_s
        return columns


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raise TraceError for a value that is not allowed."""
    if value not in allowed:
        raise TraceError(f"{key} is {value!r}, allowed {', '.join(allowed)}")
