"""Rows of a log with their times, and how they become a trace: order, spread, cut, scale.

A clock that is coarser than the requests puts many of them at one moment. That is said in the
metadata either way: what was drawn where they are spread, how many share a moment where they are
not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.places import Places
from traces.sources.tenants import about
from traces.texts import Texts
from traces.trace import MAX_DURATION_S, FloatArray, Trace, TraceError

_COARSE_S = 0.5  # steps from which a published log's times are taken for coarse
_SHARED = 0.5  # of the requests at moments of others, from which the clock is called coarse
_YEAR_S = 365.25 * 86400


class Cut(NamedTuple):
    """A part of the log's own time, and the mean rate to which its time is then stretched."""

    start_s: float = 0.0
    length_s: float | None = None
    rate_qps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRows:
    """Requests as a file has them: times (s, any origin), columns of a trace, where they stand."""

    path: Path | str
    times_s: FloatArray
    columns: Mapping[str, Any]
    places: Places
    time: str
    unit: str = "s"
    is_sorted: bool = True
    row: npt.NDArray[np.int64] | None = None  # of the file, where some were left out
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def kept(self, keep: npt.NDArray[np.bool_], where: str | None) -> LoggedRows:
        """Return the rows of a mask, which the metadata says."""
        if where is None:
            return self
        return dataclasses.replace(
            self,
            times_s=self.times_s[keep],
            columns={name: _picked(column, keep) for name, column in self.columns.items()},
            row=np.flatnonzero(keep),
            metadata={**self.metadata, "where": where, "rows_in_file": int(keep.size)},
        )

    def spread(self, step: str | None, rng: np.random.Generator) -> LoggedRows:
        """Return the requests at times drawn uniformly inside their steps.

        `step` is a length (s), `step` for the smallest step of these times, `coarse` for that where
        it is at least half a second, or None for times as they are.
        """
        if step is None:
            return self
        length_s = _step_s(np.sort(self.times_s))
        if step == "coarse" and length_s < _COARSE_S:
            return self
        if step not in ("coarse", "step"):
            length_s = _given_step(step)
        if not length_s:
            raise TraceError(
                f"{self.path}: all times are equal, so their step is not known; "
                "give its seconds (spread=SECONDS)"
            )
        self.check_sorted()
        drawn_s = self.times_s + rng.random(self.times_s.size) * length_s
        part = f"the times inside each time step of {length_s:g} s"
        metadata = {**self.metadata, "synthetic_part": part}
        return dataclasses.replace(self, times_s=drawn_s, metadata=metadata, is_sorted=False)

    def check_sorted(self) -> None:
        """Refuse rows out of order, where order is asked for. Raises TraceError with the line."""
        falls = np.flatnonzero(np.diff(self.times_s) < 0) if self.is_sorted else np.empty(0)
        if falls.size:
            raise TraceError(
                f"{self.path}, {self.place(int(falls[0]) + 1)}: is earlier than the row before; "
                "expected ascending times (the log loader sorts them with order=sort)"
            )

    def place(self, index: int) -> str:
        """Return where a row stands in the file."""
        return self.places.of(index if self.row is None else int(self.row[index]))


def _picked(column: Any, keep: npt.NDArray[np.bool_]) -> Any:
    return column[keep].used() if isinstance(column, Texts) else column[keep]


def logged_trace(rows: LoggedRows, *, source: str, licence: str, loader: str, cut: Cut) -> Trace:
    """Return the rows as a trace that starts with the first request.

    Raises:
        TraceError: rows out of order, a span of more than ten years, or nothing in the cut.
    """
    path, times_s = rows.path, rows.times_s
    rows.check_sorted()
    order = np.argsort(times_s, kind="stable")
    _check_span(rows, order)
    arrival_s = times_s[order] - times_s[order[0]]
    if arrival_s[-1] == 0:
        raise TraceError(f"{path}: all {times_s.size} requests have the same time")
    columns = {name: column[order] for name, column in rows.columns.items()}
    metadata = {"synthetic": False, "loader": loader, "requests": int(times_s.size)}
    metadata |= dict(rows.metadata)
    if "synthetic_part" not in metadata:
        metadata |= _about_clock(arrival_s)
    if "tenant" in columns:
        metadata |= about(columns["tenant"])
    trace = Trace(
        arrival_s=arrival_s,
        duration_s=float(arrival_s[-1]),
        **columns,
        source=f"{source}, {Path(path).name}" if licence else source,
        licence=licence,
        metadata=metadata,
    )
    return _cut(path, trace, cut)


def _check_span(rows: LoggedRows, order: npt.NDArray[np.int64]) -> None:
    span_s = float(rows.times_s[order[-1]]) - float(rows.times_s[order[0]])
    if span_s <= MAX_DURATION_S:
        return
    at = int(np.argmax(np.diff(rows.times_s[order])))
    before, after = int(order[at]), int(order[at + 1])
    odd = before if at < (len(order) - 2) / 2 or at == 0 else after
    raise TraceError(
        f"{rows.path}, {rows.place(odd)}, column {rows.time}: the log spans "
        f"{span_s / _YEAR_S:,.1f} years, of which "
        f"{(rows.times_s[after] - rows.times_s[before]) / _YEAR_S:,.1f} lie between "
        f"{rows.place(before)} and {rows.place(after)} (times in {rows.unit}); expected at most "
        "ten years: correct the row, or say another unit"
    )


def _about_clock(arrival_s: FloatArray) -> dict[str, Any]:
    """Say so where most requests share their moment with others."""
    moments = np.unique(arrival_s)
    if arrival_s.size - moments.size < _SHARED * arrival_s.size:
        return {}
    return {
        "clock": f"{arrival_s.size:,} requests at {moments.size:,} moments, at least "
        f"{_step_s(moments):g} s apart; all of a moment arrive at once (spread=step draws times "
        "inside the steps)"
    }


def _cut(path: Path | str, trace: Trace, cut: Cut) -> Trace:
    if cut.start_s or cut.length_s is not None:
        end_s = trace.duration_s if cut.length_s is None else cut.start_s + cut.length_s
        trace = trace.window(cut.start_s, min(end_s, trace.duration_s))
        if len(trace) == 0:
            raise TraceError(f"{path}: has no requests in [{cut.start_s:g}, {end_s:g}) s")
    if cut.rate_qps is None:
        return trace
    part = [trace.metadata[k] for k in ("synthetic_part",) if k in trace.metadata]
    scaled = trace.rescale_rate(cut.rate_qps)
    noted = {**scaled.metadata, "synthetic_part": ", and ".join([*part, "the scale of time"])}
    return dataclasses.replace(scaled, metadata=noted)


def _given_step(text: str) -> float:
    try:
        length_s = float(text)
    except ValueError:
        length_s = 0.0
    if not 0 < length_s < np.inf:
        raise TraceError(f"spread must be step, or the step's length in seconds, got {text!r}")
    return length_s


def _step_s(times_s: FloatArray) -> float:
    """Return the smallest step between different sorted times (s), 0 where there is none."""
    steps = np.diff(times_s)
    return float(steps[steps > 0].min()) if (steps > 0).any() else 0.0
