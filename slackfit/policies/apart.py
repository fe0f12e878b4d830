"""`Apart`: the queries that are served apart from the others, on a subnet that they insist on.

A pinned query has one subnet, and a floor above what the pace affords has the fastest that it
allows. What they need is certain, so it is taken off the supply before the pace of the others is
set; they are served in batches of their own. A floor that the pace keeps anyhow is not apart: it
costs nothing, and the query is served with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slackfit.policy import WishView
from slackfit.query import Query


class ApartGroup(NamedTuple):
    """The queries of one wish, and their subnet: its latencies [b] in seconds."""

    view: WishView
    subnet_id: str
    row_s: Sequence[float]
    query_s: float  # in full batches


class Apart:
    """The groups that are apart, in a queue of `num_waiting` in all."""

    __slots__ = ("_slo_s", "arriving_qps", "groups", "num_waiting", "work", "work_s")

    def __init__(self, groups: Sequence[ApartGroup], slo_s: float) -> None:
        self.groups = groups
        self._slo_s = slo_s
        #: What waits: samples, and seconds of a worker.
        self.num_waiting = sum(group.view.num_samples for group in groups)
        self.work_s = 0.0
        #: What arrives: samples, and seconds of a worker, per second.
        self.arriving_qps = sum(group.view.arriving_qps for group in groups)
        self.work = 0.0
        for group in groups:  # one after the other: `sum` rounds otherwise in newer Pythons
            self.work_s += group.view.num_samples * group.query_s
            self.work += group.view.arriving_qps * group.query_s

    def arrivals(self, horizon_s: float) -> float:
        """Return how many of those that are due by `horizon_s` are yet to arrive."""
        return self.arriving_qps * max(horizon_s - self._slo_s, 0.0)

    def needed_s(self, horizon_s: float, share_due: float) -> float:
        """Return the worker seconds to be spent on them by `horizon_s`."""
        return self.work_s * share_due + self.work * max(horizon_s - self._slo_s, 0.0)

    def most_urgent(self, now_s: float, largest: int) -> tuple[ApartGroup, int, float] | None:
        """Return the group that must start soonest, its batch, and how long it can still wait.

        The batch is cut to what its head affords. None: nothing waits.
        """
        best: tuple[ApartGroup, int, float] | None = None
        for group in self.groups:
            if group.view.head is None:
                continue
            slack_s = group.view.head.deadline_s - now_s
            size = min(group.view.num_samples, largest)
            laxity_s = slack_s - group.row_s[size]
            fitting = (b for b in range(size, 0, -1) if group.row_s[b] <= slack_s)
            if best is None or laxity_s < best[2]:
                best = group, next(fitting, 1), laxity_s
        return best

    def holds(self, query: Query, groups: Sequence[ApartGroup]) -> bool:
        """Whether a query is of a group that is apart; `groups` are all, these and others."""
        pin, floor = query.subnet_id, query.min_accuracy
        if pin is None and floor <= 0.0:
            return False
        if pin is not None:
            return any(group.view.wish.subnet_id == pin for group in self.groups)
        wishes = [group.view.wish for group in groups]
        own = min(
            (w.min_accuracy for w in wishes if w.subnet_id is None and floor <= w.min_accuracy),
            default=None,
        )
        return any(group.view.wish == (None, own) for group in self.groups)
