"""`SampleCounts`: a queue as policies see it when some of its queries hold several samples.

A batch's size is in samples, so what a policy counts must be too. How many samples are due by a
time is estimated from how many queries are: exact for the whole queue, and O(log n).
"""

from __future__ import annotations

from collections.abc import Iterator

from slackfit.query import Query
from slackfit.scheduling.edf import EdfQueue


class SampleCounts:
    """Implements `slackfit.policy.QueueView` for `num_samples` in `queue`."""

    __slots__ = ("_num_samples", "_queue")

    def __init__(self, queue: EdfQueue, num_samples: int) -> None:
        self._queue = queue
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def head(self) -> Query:
        """Return the most urgent query. Raises IndexError when the queue is empty."""
        return self._queue.head()

    def count_due(self, deadline_s: float) -> int:
        """Return about how many waiting samples have a deadline <= `deadline_s`."""
        due = self._queue.count_due(deadline_s)
        return round(due * self._num_samples / max(len(self._queue), 1))

    def earliest(self, count: int) -> Iterator[Query]:
        """Iterate over the `count` most urgent queries, fewer when fewer wait."""
        return self._queue.earliest(count)
