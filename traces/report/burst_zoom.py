"""A closer look at a run's worst moment, since a whole run's series hides what a burst does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slackfit.metrics import summarize
from slackfit.outcome_columns import OutcomeColumns
from slackfit.query import Outcome
from traces.report.figures import most_waiting

_SHARE = 0.08  # of the run that is looked at
_BINS = 80
_WINDOWS = 200  # places tried


def burst_zoom(outcomes: Sequence[Outcome], duration_s: float) -> dict[str, Any] | None:
    """Return the stretch with the most misses: `start_s`, `length_s`, `missed`, a fine `series`.

    A miss is a query that was not answered on time, however it ended. Of stretches with as many
    misses it is the one with the most arrivals. The series has the form of a report's own, its
    times counted from the run's start. None when fewer than 100 queries arrived: there is nothing
    finer to see.
    """
    if len(outcomes) < 100:
        return None
    columns = OutcomeColumns.of(outcomes).per_sample()
    missed_s = np.sort(columns.arrival_s[~columns.on_time])
    length_s = _SHARE * duration_s
    start_s, end_s = _worst_s(np.sort(columns.arrival_s), missed_s, duration_s, length_s)
    is_inside = (columns.arrival_s >= start_s) & (columns.arrival_s < end_s)
    inside = columns.take(is_inside).moved(-start_s)
    series = summarize(
        inside,
        policy="",
        slo_s=1.0,
        duration_s=length_s,
        seed=None,
        profile="",
        bin_s=length_s / _BINS,
    )["series"]
    edges_s = start_s + np.append(np.asarray(series["t_s"]), length_s)
    series["queue_depth"] = _queue_depth(columns, edges_s[1:])
    series["queue_max"] = most_waiting(columns, np.append(edges_s[:-1], end_s))
    series["t_s"] = edges_s[:-1].tolist()
    missed = int((~inside.on_time).sum())
    return {"start_s": start_s, "length_s": length_s, "missed": missed, "series": series}


def _worst_s(
    arrival_s: np.ndarray, missed_s: np.ndarray, duration_s: float, length_s: float
) -> tuple[float, float]:
    """Return the stretch with the most misses, on a grid of `_WINDOWS` places.

    The last one has no end: what arrives at the run's very end is in it, as in a report's series.
    """
    starts_s = np.linspace(0.0, duration_s - length_s, _WINDOWS)
    ends_s = np.append(starts_s[:-1] + length_s, np.inf)
    misses, arrivals = (
        np.searchsorted(times_s, ends_s) - np.searchsorted(times_s, starts_s)
        for times_s in (missed_s, arrival_s)
    )
    worst = np.lexsort((arrivals, misses))[-1]
    return float(starts_s[worst]), float(ends_s[worst])


def _queue_depth(columns: OutcomeColumns, at_s: np.ndarray) -> list[int]:
    """Return how many admitted queries of the whole run wait at each time."""
    came = np.searchsorted(np.sort(columns.arrival_s[columns.admitted]), at_s)
    return (came - np.searchsorted(np.sort(columns.left_s[columns.admitted]), at_s)).tolist()
