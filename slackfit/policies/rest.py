"""`Rest`: those who wait and are not in the batch that is about to begin.

A batch that takes all the time its own head has takes it from the rest of the queue as well, which
is often due only just after the head: arrivals come in clusters. So a batch that leaves somebody
waiting must end, or another worker become free, while the fastest subnet still saves them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from slackfit.policy import QueueView


class Rest:
    """What a queue still needs after a batch, by a time on the clock of `now_s`."""

    __slots__ = ("_fastest_s", "_next_free_s", "_now_s", "_queue")

    def __init__(
        self, queue: QueueView, now_s: float, next_free_s: float, fastest_s: Sequence[float]
    ) -> None:
        """Look at `queue`; `next_free_s` is how long until another worker is free (inf: none is).

        `fastest_s` is the latency of the fastest subnet by batch size, up to a full batch.
        """
        self._queue = queue
        self._now_s = now_s
        self._next_free_s = next_free_s
        self._fastest_s = fastest_s

    def can_wait(self, size: int, batch_s: float) -> bool:
        """Whether a batch of `size`, taking `batch_s`, leaves time for whom it leaves waiting.

        O(log n). Of more than a full batch it is the first that counts: the pace sees to the rest.
        """
        left = len(self._queue) - size
        if left <= 0:
            return True
        served_s = (
            min(batch_s, self._next_free_s) + self._fastest_s[min(left, len(self._fastest_s) - 1)]
        )
        return self._queue.count_due(self._now_s + served_s) <= size
