"""A closer look at a run's worst moment, since a whole run's series hides what a burst does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slackfit.metrics import summarize
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
    arrival_s = np.array([o.arrival_s for o in outcomes])
    missed_s = np.array([o.arrival_s for o in outcomes if o.status != "on_time"])
    length_s = _SHARE * duration_s
    start_s = _worst_s(np.sort(arrival_s), np.sort(missed_s), duration_s, length_s)
    inside = np.flatnonzero((arrival_s >= start_s) & (arrival_s < start_s + length_s))
    moved = [_moved(outcomes[i], start_s) for i in inside.tolist()]
    series = summarize(
        moved,
        policy="",
        slo_s=1.0,
        duration_s=length_s,
        seed=None,
        profile="",
        bin_s=length_s / _BINS,
    )["series"]
    edges_s = start_s + np.append(np.asarray(series["t_s"]), length_s)
    series["queue_depth"] = _queue_depth(outcomes, arrival_s, edges_s[1:])
    series["queue_max"] = most_waiting(outcomes, edges_s)
    series["t_s"] = edges_s[:-1].tolist()
    missed = sum(outcome.status != "on_time" for outcome in moved)
    return {"start_s": start_s, "length_s": length_s, "missed": missed, "series": series}


def _worst_s(
    arrival_s: np.ndarray, missed_s: np.ndarray, duration_s: float, length_s: float
) -> float:
    """Return where the stretch with the most misses starts, on a grid of `_WINDOWS` places."""
    starts_s = np.linspace(0.0, duration_s - length_s, _WINDOWS)
    misses, arrivals = (
        np.searchsorted(times_s, starts_s + length_s) - np.searchsorted(times_s, starts_s)
        for times_s in (missed_s, arrival_s)
    )
    return float(starts_s[np.lexsort((arrivals, misses))[-1]])


def _queue_depth(outcomes: Sequence[Outcome], arrival_s: np.ndarray, at_s: np.ndarray) -> list[int]:
    """Return how many admitted queries of the whole run wait at each time."""
    admitted = np.array([o.status != "rejected" for o in outcomes])
    left_s = np.array([o.finish_s if o.start_s is None else o.start_s for o in outcomes])
    came = np.searchsorted(np.sort(arrival_s[admitted]), at_s)
    return (came - np.searchsorted(np.sort(left_s[admitted]), at_s)).tolist()


def _moved(outcome: Outcome, start_s: float) -> Outcome:
    return outcome._replace(
        arrival_s=outcome.arrival_s - start_s,
        deadline_s=outcome.deadline_s - start_s,
        start_s=None if outcome.start_s is None else outcome.start_s - start_s,
        finish_s=outcome.finish_s - start_s,
    )
