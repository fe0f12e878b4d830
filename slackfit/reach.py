"""`Reach`: when a query that arrives now could be answered, behind all that is due before it.

Everything ahead is taken to run on the fastest subnet, in full batches of the size with the highest
throughput: when the query's turn comes, its batch will be full of later ones. A query that is late
even so would only make others late by being let in. A policy that follows the slack of the head
would then serve ever smaller batches to ever later heads: in overload its throughput falls to that
of batches of one. O(workers).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from slackfit.policy import WorkerView
from slackfit.profile import LatencyProfile


class Reach:
    """Answers for one profile at one latency quantile."""

    __slots__ = ("_batch_size", "_fastest_s")

    def __init__(self, profile: LatencyProfile, quantile: str) -> None:
        rows = profile.table(quantile).values()
        # [b]: the shortest batch of b; 0 for none.
        self._fastest_s = [0.0] + [
            min(column) for column in zip(*(r[1:] for r in rows), strict=True)
        ]
        sizes = range(1, len(self._fastest_s))
        self._batch_size = min(sizes, key=lambda size: self._fastest_s[size] / size)

    def finish_s(self, num_ahead: int, workers: Sequence[WorkerView], now_s: float) -> float:
        """Return when the query behind `num_ahead` others would be answered, at best."""
        busy_s = [max(0.0, w.busy_until_s - now_s) for w in workers if isfinite(w.busy_until_s)]
        if not busy_s:
            return now_s  # nobody is left: no estimate
        share = -(-(num_ahead + 1) // len(busy_s))
        size = self._batch_size
        work_s = (
            -(-share // size) * self._fastest_s[size] if share > size else self._fastest_s[share]
        )
        return now_s + sum(busy_s) / len(busy_s) + work_s
