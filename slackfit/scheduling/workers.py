"""The worker slots: which devices are free, and when the busy ones should be."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf

from slackfit.policy import WorkerView


class Workers:
    """One slot per device; the free one with the lowest id works first."""

    __slots__ = ("_free", "views")

    def __init__(self, count: int) -> None:
        self.views = [WorkerView(i, 0.0, None) for i in range(count)]
        self._free = list(range(count))  # a heap

    def __len__(self) -> int:
        return len(self.views)

    def free(self, worker_id: int | None = None) -> WorkerView | None:
        """Return the named worker or any, None when it is (or all are) busy.

        Raises ValueError for an unknown worker.
        """
        free = self._free
        if worker_id is None:
            return self.views[free[0]] if free else None
        if worker_id in free:
            return self.views[worker_id]
        self.view(worker_id)  # raises for an unknown one
        return None

    def view(self, worker_id: int) -> WorkerView:
        """Return the named worker. Raises ValueError for an unknown one."""
        if not 0 <= worker_id < len(self.views):
            raise ValueError(f"worker {worker_id} is unknown, allowed 0 to {len(self.views) - 1}")
        return self.views[worker_id]

    def next_free(self) -> WorkerView:
        """Return the worker that should be free first, as predicted."""
        return min(self.views, key=lambda view: view.busy_until_s)

    def occupy(self, worker_id: int, until_s: float, subnet_id: str | None) -> None:
        """Mark a worker as busy, or a busy one for longer; `until_s` is a prediction."""
        self.views[worker_id] = WorkerView(worker_id, until_s, subnet_id)
        free = self._free
        if free and free[0] == worker_id:
            heappop(free)
        elif worker_id in free:
            free.remove(worker_id)
            heapify(free)

    def prolong(self, worker_id: int, until_s: float) -> None:
        """Predict anew until when a busy worker is busy."""
        self.views[worker_id] = self.views[worker_id]._replace(busy_until_s=until_s)

    def release(self, worker_id: int, now_s: float, subnet_id: str) -> None:
        """Mark a busy worker as free; its device still has `subnet_id` current."""
        self.views[worker_id] = WorkerView(worker_id, now_s, subnet_id)
        heappush(self._free, worker_id)

    def retire(self, worker_id: int) -> None:
        """Take a free worker out of service; policies see it as busy for ever."""
        self.occupy(worker_id, inf, self.views[worker_id].last_subnet_id)
