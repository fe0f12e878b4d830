"""`Demand`: what one model's last seconds asked of its device; what replicas are scaled by.

Counted as queries end, in whole seconds, so that memory is the window's length.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from serve.engine.reply import Reply
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.backlog import hopeless

WINDOW_S = 3  # Ray takes means of these over a longer time
_NOT_LOAD = ("cancelled", "draining", "not_ready", "device_failed", "unknown_subnet")


class Signals(NamedTuple):
    """What a replica reports; sums, so that those of several models and replicas can be added.

    `arrived`: queries per second. `missed`: how many of those were not on time, or wait and will
    not be. `given_up`: accuracy lost per second against the most accurate subnet that fits the
    default SLO. `work_best`, `work_least`: device seconds per second that the arrivals ask for on
    that subnet, and on the fastest one, in the batches that are cheapest per query.
    """

    arrived: float = 0.0
    missed: float = 0.0
    given_up: float = 0.0
    work_best: float = 0.0
    work_least: float = 0.0


def total(signals: Iterable[Signals]) -> Signals:
    """Add up the signals of several models or replicas."""
    rows = tuple(signals)
    return Signals(*(sum(values) for values in zip(*rows, strict=True))) if rows else Signals()


class Demand:
    """Sums over the queries of one model that ended in the last seconds; one thread."""

    def __init__(self, profile: LatencyProfile, slo_s: float, window_s: int = WINDOW_S) -> None:
        self._window_s = window_s
        self._seconds: deque[list[float]] = deque()  # second, ended, missed, given up
        self.use(profile, slo_s)

    def use(self, profile: LatencyProfile, slo_s: float) -> None:
        """Judge by another profile or SLO from now on."""
        self._fastest = profile.fastest()
        table = profile.table()
        fitting = [s for s in profile.subnets if table[s.subnet_id][1] <= slo_s]
        best = max(fitting, key=lambda s: s.accuracy, default=profile.subnets[0])
        self._accuracy = best.accuracy
        costs = {
            name: min(row[size] / size for size in range(1, len(row)) if row[size] <= slo_s)
            if row[1] <= slo_s
            else row[1]
            for name, row in table.items()
        }
        self._best_s, self._least_s = costs[best.subnet_id], min(costs.values())

    def observe(self, reply: Reply) -> None:
        """Count the end of one query, as many as it has samples."""
        outcome = reply.outcome
        # A client that hung up at its own time limit missed its deadline: that is load.
        is_given_up = outcome.reason == "cancelled" and outcome.finish_s >= outcome.deadline_s
        if (outcome.reason in _NOT_LOAD and not is_given_up) or outcome.status == "failed":
            return
        second = math.floor(outcome.finish_s)
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append([second, 0.0, 0.0, 0.0])
            self._forget(second)
        current = self._seconds[-1]
        samples = outcome.samples
        current[1] += samples
        current[2] += samples * (outcome.status != "on_time")
        if reply.is_executed:
            current[3] += samples * max(0.0, self._accuracy - outcome.accuracy)

    def signals(self, now_s: float, waiting: Sequence[Query], free_at_s: float) -> Signals:
        """Return the figures of the window; `waiting` by deadline, for the misses to come."""
        self._forget(math.floor(now_s))
        lost = len(hopeless(self._fastest, waiting, max(now_s, free_at_s)))
        ended, missed, given_up = (
            sum(second[i] for second in self._seconds) / self._window_s for i in (1, 2, 3)
        )
        arrived = ended + lost / self._window_s
        return Signals(
            arrived,
            missed + lost / self._window_s,
            given_up,
            arrived * self._best_s,
            arrived * self._least_s,
        )

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - self._window_s:
            self._seconds.popleft()
