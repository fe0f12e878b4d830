"""`WishGroups`: the waiting queries that may not run on every subnet, by what they ask for.

A wish is a pinned subnet, or a floor on accuracy. Floors between two subnets' accuracies are one
wish, so that there are at most twice as many groups as subnets. Each group is a queue of its own,
an index into the one queue that holds all; groups of which nothing waits are kept for a second, so
that their rate is known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from slackfit.eligibility import is_plain
from slackfit.policy import WishView
from slackfit.profile import LatencyProfile
from slackfit.query import Query, Wish
from slackfit.scheduling.edf import EdfQueue

RATE_OVER_S = 1.0
MAX_TIMES = 65_536  # arrivals remembered of one wish


class WishGroups:
    """The constrained queries that wait, under one profile."""

    __slots__ = ("_accuracies", "_groups", "num_waiting")

    def __init__(self, profile: LatencyProfile) -> None:
        self._accuracies = [subnet.accuracy for subnet in profile.subnets]
        self._groups: dict[Wish, _WishGroup] = {}
        self.num_waiting = 0

    def wish_of(self, query: Query) -> Wish:
        """Return the wish of a query; a floor that no subnet reaches counts as the highest."""
        if query.subnet_id is not None:
            return Wish(query.subnet_id, 0.0)
        at = bisect_left(self._accuracies, query.min_accuracy)
        at = min(at, len(self._accuracies) - 1)
        return Wish(None, self._accuracies[at])

    def add(self, query: Query) -> None:
        """Take in a query that waits from now on; one without a wish is passed over."""
        if is_plain(query):
            return
        wish = self.wish_of(query)
        group = self._groups.get(wish)
        if group is None:
            group = self._groups[wish] = _WishGroup()
        group.add(query)
        self.num_waiting += 1

    def remove(self, query: Query) -> None:
        """Let go of a query that no longer waits."""
        if not is_plain(query):
            self._groups[self.wish_of(query)].remove(query)
            self.num_waiting -= 1

    def earliest(self, wish: Wish, count: int) -> Iterable[Query]:
        """Return the `count` most urgent queries with this wish, fewer when fewer wait."""
        group = self._groups.get(wish)
        return () if group is None else group.queue.earliest(count)

    def views(self, now_s: float) -> tuple[WishView, ...]:
        """Return what policies see; groups that are over are forgotten."""
        if not self._groups:
            return ()
        found: list[WishView] = []
        for wish, group in list(self._groups.items()):
            arriving_qps = group.rate_qps(now_s)
            if not group.queue and arriving_qps == 0.0:
                del self._groups[wish]
                continue
            head = group.queue.head() if group.queue else None
            found.append(WishView(wish, head, group.num_samples, arriving_qps))
        return tuple(found)


class _WishGroup:
    """What waits of one wish, and when it arrived in the last second."""

    __slots__ = ("_times_s", "num_samples", "queue")

    def __init__(self) -> None:
        self.queue = EdfQueue()
        self.num_samples = 0
        self._times_s: list[float] = []

    def add(self, query: Query) -> None:
        self.queue.push(query)
        self.num_samples += query.samples
        self._times_s += [query.arrival_s] * query.samples
        if len(self._times_s) > MAX_TIMES:
            del self._times_s[: MAX_TIMES // 2]

    def remove(self, query: Query) -> None:
        if self.queue.remove(query):
            self.num_samples -= query.samples

    def rate_qps(self, now_s: float) -> float:
        since = bisect_left(self._times_s, now_s - RATE_OVER_S)
        del self._times_s[:since]
        return len(self._times_s) / RATE_OVER_S
