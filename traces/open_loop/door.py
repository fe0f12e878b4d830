"""`DoorCost`: what a server's door takes of every request, measured from outside beforehand.

On the idle server single queries tell what one takes besides execution. Bursts tell what the door
does one after the other: of queries that come at one moment, the one at place i waits for the i
before it, so the slope of that overhead over the place is the door's time for one request. What
client and door share of one machine is in it, as it is in the run that is foretold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from traces.open_loop.answers import Answer
from traces.trace import FloatArray, Trace, TraceError

BURST = 16
"""Queries of a burst."""
_NUM_BURSTS = 12
_NUM_SINGLE = 30
_MOST_QPS = 20.0
_LONGEST_GAP_S = 2.0
_SHORTEST_GAP_S = 0.1
_LOWER = 0.25  # quantile


class DoorCost(NamedTuple):
    """`idle_s` of a query alone, besides execution; `request_s` of them one after the other."""

    idle_s: float
    request_s: float

    @property
    def answer_s(self) -> float:
        """What is left of `idle_s` once the door is through with a request."""
        return max(self.idle_s - self.request_s, 0.0)

    def to_json(self) -> dict[str, float]:
        """Return it as plain data, in milliseconds."""
        return {"idle_ms": self.idle_s * 1e3, "request_ms": self.request_s * 1e3}


def single_queries(slowest_s: float) -> Trace:
    """Return a trace of queries so far apart that none meets another on the device.

    `slowest_s` is the longest that one may run there.
    """
    rate_qps = min(_MOST_QPS, 0.5 / slowest_s)
    return _evenly(np.arange(_NUM_SINGLE, dtype=np.float64) / rate_qps, 1.0 / rate_qps)


def bursts(slowest_s: float) -> Trace:
    """Return a trace of bursts of `BURST` queries, each after the one before has been served.

    `slowest_s` is the longest that a batch of so many may run.
    """
    gap_s = float(np.clip(2.0 * slowest_s, _SHORTEST_GAP_S, _LONGEST_GAP_S))
    return _evenly(np.repeat(np.arange(_NUM_BURSTS, dtype=np.float64), BURST) * gap_s, gap_s)


def door_cost(single: Sequence[Answer], burst: Sequence[Answer]) -> DoorCost:
    """Return the cost from the answers to `single_queries` and to `bursts`.

    What else runs on the machine only adds, so of single queries the lower quartile counts, and of
    bursts the least at each place, whose slope is found by least squares; below 0 it is 0. Raises
    TraceError where too few were answered to tell.
    """
    alone_s = [
        a.finish_s - a.sent_s - a.reply.execution_s for a in single if a.reply.status == "ok"
    ]
    by_place: dict[int, list[float]] = {}
    for a in burst:
        if a.reply.status == "ok":
            over_s = a.finish_s - a.intended_s - a.reply.queue_s - a.reply.execution_s
            by_place.setdefault(a.query_id % BURST, []).append(over_s)
    if not alone_s or len(by_place) < 2:
        raise TraceError("the server answered too few of the queries that measure its door")
    places = sorted(by_place)
    least_s = [min(by_place[place]) for place in places]
    slope_s = float(np.polyfit(places, least_s, 1)[0])
    return DoorCost(max(float(np.quantile(alone_s, _LOWER)), 0.0), max(slope_s, 0.0))


def through_the_door(arrival_s: FloatArray, request_s: float) -> FloatArray:
    """Return when each of these sorted arrivals has passed a door that takes one at a time.

    Lindley's recursion, end = max(arrival, end before) + request, for all at once.

    >>> through_the_door(np.array([0.0, 0.0, 5.0]), 1.0).tolist()
    [1.0, 2.0, 6.0]
    """
    ahead_s = request_s * np.arange(len(arrival_s), dtype=np.float64)
    return np.maximum.accumulate(arrival_s - ahead_s) + ahead_s + request_s


def _evenly(arrival_s: FloatArray, gap_s: float) -> Trace:
    return Trace(arrival_s=arrival_s, duration_s=float(arrival_s[-1]) + gap_s, source="door probe")
