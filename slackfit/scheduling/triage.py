"""`Triage`: whom to give up, so that the others are served in batches worth running.

A policy answers little slack with a small batch. Small batches serve fewer queries a second, so
the next head has less slack still: beyond capacity it ends at batches of one, and stays there.
Giving up the most urgent queries before the decision breaks that chain, where it saves more:

- While more arrives than the workers can serve, time spent on less than a full batch is missed by
  others: whoever no full batch saves is given up. (Full: of the size that serves most per second,
  or all that wait. Served: on the fastest subnet.)
- While the workers keep up, two plans for all that waits are compared: one begins with the largest
  batch that still saves the head, the other without those whom no full batch saves; both go on in
  full batches. They are given up if the other plan saves more.

A query is given up for the sake of those of its own standing (`Ranks`: the tenant's share, then
the class) and higher ones only: all of a lower standing that are in the way go first. Above the
lowest, plans are compared whatever the load, since somebody else is there to give way.

O(log n) when the head affords a full batch, else O(n / batch size x log n) with n at most 512.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import inf

from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.decide import SchedulerView
from slackfit.scheduling.standing import Rank, Ranks

LOOK_AT = 512  # queries planned for
WINDOW_SLOS = 4  # arrivals of that long, or of one in the beginning, tell the load
_DEFAULT: Rank = (True, 0)


class Triage:
    """Judges by one profile at one latency quantile."""

    __slots__ = ("_capacity_qps", "_fastest_s", "_full")

    def __init__(self, profile: LatencyProfile, quantile: str) -> None:
        fastest = profile.fastest(quantile)
        self._fastest_s = fastest.latency_s
        self._full = fastest.best_size
        self._capacity_qps = fastest.capacity_qps  # of one worker

    @property
    def least_s(self) -> float:
        """Seconds of one worker that a query takes at the least."""
        return 1.0 / self._capacity_qps

    def given_up(self, view: SchedulerView, ranks: Ranks, now_s: float) -> list[Query]:
        """Return the waiting queries that are to be given up. The queue is not empty."""
        head = view.queue.head()
        if self._fastest_s[min(len(view.queue), self._full)] <= head.deadline_s - now_s:
            return []
        waiting = _samples(view.queue.earliest(LOOK_AT))
        present = {ranks.of(query) for query in waiting}
        least = min(present | {_DEFAULT})
        lost: list[Query] = []
        for rank in sorted(present | {least}):
            served = [query for query in waiting if ranks.of(query) >= rank]
            if served:
                before_s = self._due_before_s(served, view, now_s, counts_only=rank > least)
                due = takewhile(lambda query, due_s=before_s: query.deadline_s < due_s, served)
                lost += [query for query in due if ranks.of(query) == rank]
        return list({query.query_id: query for query in lost}.values())

    def _due_before_s(
        self, waiting: Sequence[Query], view: SchedulerView, now_s: float, *, counts_only: bool
    ) -> float:
        """Return before which deadline saving `waiting` costs more than it saves; -inf: none.

        `counts_only`: whoever is still to arrive does not count.
        """
        slacks_s = [query.deadline_s - now_s for query in waiting]
        first = self._first_saved(slacks_s, 0, 0.0)
        if first == len(waiting):
            return -inf
        if counts_only or not self._is_overloaded(view, now_s):
            num_workers = len(view.workers) * view.others.left
            small = max(bisect_right(self._fastest_s, slacks_s[0]) - 1, 0)
            busy_s = self._fastest_s[small] / num_workers
            keeping = small + self._num_saved(slacks_s, small, busy_s, num_workers)
            if keeping >= self._num_saved(slacks_s, first, 0.0, num_workers):
                return -inf
        return waiting[first].deadline_s

    def _is_overloaded(self, view: SchedulerView, now_s: float) -> bool:
        """Whether more arrived lately than all workers could have served."""
        head = view.queue.head()
        slo_s = head.deadline_s - head.arrival_s
        window_s = max(slo_s, min(WINDOW_SLOS * slo_s, now_s - view.first_arrival_s))
        capacity = self._capacity_qps * len(view.workers) * view.others.left * window_s
        return view.arrivals_within(window_s) > capacity

    def _num_saved(
        self, slacks_s: list[float], at: int, elapsed_s: float, num_workers: float
    ) -> int:
        """Return how many of `slacks_s` (ascending) from `at` on full batches save from then on."""
        saved = 0
        while (at := self._first_saved(slacks_s, at, elapsed_s)) < len(slacks_s):
            size = min(len(slacks_s) - at, self._full)
            saved += size
            at += size
            elapsed_s += self._fastest_s[size] / num_workers
        return saved

    def _first_saved(self, slacks_s: list[float], at: int, elapsed_s: float) -> int:
        """Return the first query from `at` on that a full batch, begun then, saves."""
        first = bisect_left(slacks_s, elapsed_s + self._fastest_s[self._full], at)
        if len(slacks_s) - first >= self._full:
            return first
        # Fewer are left than a full batch holds: the fewer, the sooner it is done.
        for first in range(max(at, len(slacks_s) - self._full), len(slacks_s)):
            if slacks_s[first] >= elapsed_s + self._fastest_s[len(slacks_s) - first]:
                return first
        return len(slacks_s)


def _samples(queries: Iterable[Query]) -> list[Query]:
    """Return a query once for each of its samples, of the first samples only."""
    found: list[Query] = []
    for query in queries:
        found += [query] * query.samples
        if len(found) >= LOOK_AT:
            break
    return found
