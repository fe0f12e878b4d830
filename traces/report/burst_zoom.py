"""A closer look at a run's worst moment, since a whole run's series hides what a burst does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slackfit.metrics import summarize
from slackfit.query import Outcome

_SHARE = 0.08  # of the run that is looked at
_BINS = 80
_WINDOWS = 200  # places tried


def burst_zoom(outcomes: Sequence[Outcome], duration_s: float) -> dict[str, Any] | None:
    """Return the busiest stretch of a run: `start_s`, `length_s` and a fine `series`.

    The series has the form of a report's own, its times counted from the run's start. None when
    fewer than 100 queries arrived: there is nothing finer to see.
    """
    if len(outcomes) < 100:
        return None
    arrival_s = np.array([o.arrival_s for o in outcomes])
    length_s = _SHARE * duration_s
    start_s = _busiest_s(np.sort(arrival_s), duration_s, length_s)
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
    offsets_s = np.asarray(series["t_s"])
    ends_s = start_s + np.append(offsets_s[1:], length_s)
    series["queue_depth"] = _queue_depth(outcomes, arrival_s, ends_s)
    series["t_s"] = (start_s + offsets_s).tolist()
    return {"start_s": start_s, "length_s": length_s, "series": series}


def _busiest_s(arrival_s: np.ndarray, duration_s: float, length_s: float) -> float:
    """Return where the stretch with the most arrivals starts, on a grid of `_WINDOWS` places."""
    starts_s = np.linspace(0.0, duration_s - length_s, _WINDOWS)
    ends = np.searchsorted(arrival_s, starts_s + length_s)
    counts = ends - np.searchsorted(arrival_s, starts_s)
    return float(starts_s[int(np.argmax(counts))])


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
