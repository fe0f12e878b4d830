"""Figures of the parts of a run: by class, tenant and session, by tokens and size.

Names and classes are told one by one, the many beyond `MAX_GROUPS` together. Counts and sizes go
into bands whose bounds are powers of four, which are the same in every run, so that runs compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slackfit.outcome_columns import OutcomeColumns
from traces.texts import Texts
from traces.trace import FloatArray, IntArray, Trace

QUANTILES = (50, 90, 95, 99)
MAX_GROUPS = 32
"""Classes, tenants or sessions that are told one by one: those with the most queries."""

UNKNOWN = "(unknown)"
OTHERS = "(others)"


class Grouping(NamedTuple):
    """What each of N rows belongs to: a place in `names`."""

    names: Sequence[str]
    codes: IntArray


def groups(columns: OutcomeColumns, trace: Trace) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of each group, by the report's key for what they are grouped by.

    `columns` has a row per sample, whose ids are places in `trace`. A column that the trace lacks
    groups nothing.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if not len(columns):
        return found
    for key, (name, group) in _GROUPINGS.items():
        column = getattr(trace, name)
        if column is not None:
            found[key] = _by_group(columns, group(column[columns.query_id]))
    return found


def bands(values: npt.NDArray[Any]) -> Grouping:
    """Return the band of each value: 0, 1 to 3, 4 to 15, 16 to 63 ...; unknown ones last.

    >>> bands(np.array([0, 3, 4, 100, -1])).names
    ['0', '1 to 3', '4 to 15', '64 to 255', '(unknown)']
    """
    numbers = values.astype(np.float64)
    is_known = numbers >= 0  # -1 and NaN are unknown
    powers = np.full(len(numbers), np.inf)
    powers[is_known] = (np.frexp(numbers[is_known])[1] - 1) // 2  # whole logarithms to base 4
    powers[is_known & (numbers < 1)] = -1.0  # below 1: its own band
    found, codes = np.unique(powers, return_inverse=True)
    is_whole = np.issubdtype(values.dtype, np.integer)
    return Grouping([_band_name(power, is_whole) for power in found.tolist()], codes)


def _band_name(power: float, is_whole: bool) -> str:
    if power == np.inf:
        return UNKNOWN
    if power < 0:
        return "0" if is_whole else "below 1"
    low, high = 4 ** int(power), 4 ** (int(power) + 1)
    return f"{low:,} to {high - 1:,}" if is_whole else f"{low:,} to below {high:,}"


def _classes(column: IntArray) -> Grouping:
    numbers, codes = np.unique(column, return_inverse=True)
    return Grouping([str(number) for number in numbers.tolist()], codes)


def _texts(column: Texts) -> Grouping:
    # Somebody may be called as the unknown ones are.
    shown = [repr(name) if name in (UNKNOWN, OTHERS) else name for name in column.names]
    return Grouping([name or UNKNOWN for name in shown], column.codes)


_GROUPINGS: dict[str, tuple[str, Callable[[Any], Grouping]]] = {
    "classes": ("query_class", _classes),
    "tenants": ("tenant", _texts),
    "sessions": ("session", _texts),
    "prompt_tokens": ("prompt_tokens", bands),
    "output_tokens": ("output_tokens", bands),
    "sizes": ("size", bands),
}
"""The report's key -> the trace's column, and how its values are grouped."""

GROUP_KEYS = tuple(_GROUPINGS)


def _by_group(columns: OutcomeColumns, grouping: Grouping) -> dict[str, dict[str, Any]]:
    names, codes = grouping
    counts = np.bincount(codes, minlength=len(names))
    shown: set[int] = set(np.argsort(-counts, kind="stable")[:MAX_GROUPS].tolist())
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(counts)
    measured = _measured(columns)
    table: dict[str, dict[str, Any]] = {}
    is_rest = np.ones(len(codes), dtype=np.bool_)
    for code in sorted(shown):
        rows = order[ends[code] - counts[code] : ends[code]]
        if rows.size:
            table[names[code]] = _figures(measured, rows)
            is_rest[rows] = False
    if is_rest.any():
        table[OTHERS] = _figures(measured, np.flatnonzero(is_rest))
    return table


def _measured(columns: OutcomeColumns) -> dict[str, FloatArray]:
    """Return on time (0 or 1), accuracy, latency (infinite without answer) and SLO per row."""
    return {
        "on_time": columns.on_time.astype(np.float64),
        "accuracy": columns.accuracy,
        "latency_s": np.where(columns.executed, columns.latency_s, np.inf),
        "slo_s": columns.deadline_s - columns.arrival_s,
    }


def _figures(measured: Mapping[str, FloatArray], rows: IntArray) -> dict[str, Any]:
    on_time = measured["on_time"][rows] > 0
    accuracy = measured["accuracy"][rows][on_time]
    latency_s = measured["latency_s"][rows]
    answered_ms = latency_s[np.isfinite(latency_s)] * 1e3
    attainment = float(on_time.mean())
    mean_accuracy = float(accuracy.mean()) if accuracy.size else 0.0
    quantiles = np.percentile(answered_ms, QUANTILES).tolist() if answered_ms.size else ()
    every = np.sort(latency_s)[max(int(np.ceil(0.99 * rows.size)) - 1, 0)]
    return {
        "num_queries": int(rows.size),
        "slo_attainment": attainment,
        "mean_serving_accuracy": mean_accuracy,
        "utility": attainment * mean_accuracy,
        "latency_ms": dict(
            zip((f"p{q}" for q in QUANTILES), quantiles or [None] * len(QUANTILES), strict=True)
        ),
        "p99_all_ms": float(every * 1e3) if np.isfinite(every) else None,
        "slo_ms": float(np.median(measured["slo_s"][rows]) * 1e3),
    }
