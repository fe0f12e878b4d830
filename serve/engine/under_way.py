"""`UnderWay`: the batches on a device, oldest first, and what is predicted of them.

All but the first are queued behind it on the device. The watchdog follows the first; the time of
the next one counts from when that has ended. Used under the engine's lock.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

from serve.engine.watchdog import Watchdog
from slackfit.query import Batch


class BatchUnderWay(NamedTuple):
    """A decided batch, and how long the decision took."""

    batch: Batch
    decision_s: float


class UnderWay:
    """What one device has to do; `busy_until_s` is when it should have done all of it."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.busy_until_s = -inf
        self._watchdog = watchdog
        self._batches: deque[BatchUnderWay] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def free_at_s(self, now_s: float) -> float:
        """When the device should be free for one more: now, if it has nothing to do."""
        return max(now_s, self.busy_until_s)

    def holds(self, query_id: int) -> bool:
        """Whether a query is in one of the batches."""
        return any(
            query.query_id == query_id for each in self._batches for query in each.batch.queries
        )

    def add(self, decided: BatchUnderWay) -> None:
        """Put a batch behind those that are there."""
        batch = decided.batch
        if not self._batches:
            self._watchdog.launched(batch.start_s, batch.expected_latency_s)
        self._batches.append(decided)
        self.busy_until_s = batch.start_s + batch.expected_latency_s

    def end_oldest(self, now_s: float) -> BatchUnderWay:
        """Take the oldest away and return it: it has ended, and the one behind it begins."""
        ended = self._batches.popleft()
        self._watchdog.returned()
        left_s = [each.batch.expected_latency_s for each in self._batches]
        self.busy_until_s = now_s + sum(left_s)
        if left_s:
            self._watchdog.launched(now_s, left_s[0])
        return ended
