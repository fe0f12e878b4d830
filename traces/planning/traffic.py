"""`Traffic`: the queries that a fleet is planned for, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.planning.promise import Promise
from traces.trace import FloatArray, IntArray, Trace, TraceError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Arrivals in seconds from the start, how long that lasts, and deadlines after arrival.

    `slo_s` and `min_accuracy`, a floor, are one value or one per query; `query_class` are priority
    classes (None: all alike). `groups` are the queries, a mask each, of whom a promise names apart.
    """

    arrival_s: FloatArray
    duration_s: float
    slo_s: float | FloatArray
    query_class: IntArray | None = None
    min_accuracy: float | FloatArray = 0.0
    groups: Mapping[str, BoolArray] = field(default_factory=dict[str, BoolArray])

    def faster(self, factor: float) -> Traffic:
        """Return the same arrivals closer together; deadlines stay."""
        return replace(self, arrival_s=self.arrival_s / factor, duration_s=self.duration_s / factor)

    def with_slo(self, factor: float) -> Traffic:
        """Return the same with longer deadlines."""
        return replace(self, slo_s=self.slo_s * factor)

    def between(self, begin_s: float, end_s: float) -> Traffic:
        """Return the part that arrives in [begin_s, end_s), counted from its begin."""
        first, last = np.searchsorted(self.arrival_s, [begin_s, end_s]).tolist()
        part = self.picked(slice(first, last))
        return replace(part, arrival_s=part.arrival_s - begin_s, duration_s=end_s - begin_s)

    def busiest(self, share: float) -> Traffic:
        """Return the contiguous part of that share of the time with the most arrivals."""
        length_s = share * self.duration_s
        starts_s = np.linspace(0.0, self.duration_s - length_s, 64)
        counts = np.diff(np.searchsorted(self.arrival_s, [starts_s, starts_s + length_s]), axis=0)
        begin_s = float(starts_s[int(np.argmax(counts))])
        return self.between(begin_s, begin_s + length_s)

    def picked(self, rows: slice | npt.NDArray[Any]) -> Traffic:
        """Return some of the queries, at the times that they have here."""
        return replace(
            self,
            arrival_s=self.arrival_s[rows],
            slo_s=_picked(self.slo_s, rows),
            query_class=None if self.query_class is None else self.query_class[rows],
            min_accuracy=_picked(self.min_accuracy, rows),
            groups={name: mask[rows] for name, mask in self.groups.items()},
        )

    @property
    def rate_qps(self) -> float:
        """Arrivals per second."""
        return len(self.arrival_s) / self.duration_s

    @property
    def shortest_slo_s(self) -> float:
        """The tightest deadline."""
        return float(np.min(self.slo_s))


def traffic_of(trace: Trace, slo_s: float | None, promise: Promise) -> Traffic:
    """Return a trace's queries, with `slo_s` (None: its own deadlines) and what a promise names.

    Raises TraceError for a trace without arrivals, without deadlines where none is given, or
    without a group of the promise.
    """
    if not len(trace):
        raise TraceError("the trace has no arrivals, there is nothing to plan for")
    slo = trace.slo_s if slo_s is None else slo_s
    if slo is None:
        raise TraceError("the trace carries no deadlines; give an SLO (--slo-ms)")
    groups = {part.group: members(trace, part.group) for part in promise.parts}
    floor: float | FloatArray = promise.floor
    if any(part.floor > promise.floor for part in promise.parts):
        floor = np.full(len(trace), promise.floor)
        for part in promise.parts:
            floor[groups[part.group]] = np.maximum(floor[groups[part.group]], part.floor)
    return Traffic(trace.arrival_s, trace.duration_s, slo, trace.query_class, floor, groups)


def members(trace: Trace, group: str) -> BoolArray:
    """Return which queries are of a group: a tenant by name, or a priority class by its number.

    Raises TraceError that lists what the trace has.
    """
    if group.isdigit():
        classes = trace.query_class
        mask = np.zeros(len(trace), np.bool_) if classes is None else classes == int(group)
        known = [] if classes is None else [str(c) for c in np.unique(classes).tolist()]
        what = "class"
    else:
        tenants = trace.tenant
        known = [] if tenants is None else [name for name in tenants.names if name]
        mask = np.zeros(len(trace), np.bool_)
        if tenants is not None and group in tenants.names:
            mask = tenants.codes == tenants.names.index(group)
        what = "tenant"
    if not mask.any():
        has = ", ".join(known[:20]) or "none"
        raise TraceError(f"the promise names {what} {group!r}, of which the trace has {has}")
    return mask


def _picked(value: float | FloatArray, rows: slice | npt.NDArray[Any]) -> float | FloatArray:
    return value if np.ndim(value) == 0 else np.asarray(value)[rows]
