"""`LooseEngine`: an engine that keeps a drawn subnet only as long as every deadline allows it.

A drawn subnet is a pin to the scheduler, which serves pins apart: queries that could share a batch
do not. So before each poll the waiting queries are walked in the order of their deadlines: what
waits up to each, with all pins kept, takes so long. Where that is more than half of the time to its
deadline, the pins up to it are let go: those queries get one pin in common, drawn among the most
accurate few that let all be in time. Without two of those the policy chooses, as for anybody's,
above their floors. (Left to the policy at once, its own choice showed through: four answers of ten
at half of the device's load.) (With all of the time pins were kept until a burst found the queue
without slack: measured, two deadlines of 1,500.) The walk leaves room for the longest batch of a
pinned subnet, which the policy may begin before it, in its own order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serve.engine.engine import Engine
from serve.engine.job import Job
from serve.engine.reply import RequestOptions
from slackfit.eligibility import Eligibility
from slackfit.policy import DeviceLoad
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Dispatch

LOOSENED = "loosened"
_GATHERED, _LEAST_GATHERED = 4, 2
_KEPT_SHARE = 0.5
"""Of the time to a deadline: what pins take longer, the policy lacks for bursts that follow."""


class LoosePin(str):
    """The id of a subnet that a query should have if no deadline suffers; else any."""

    __slots__ = ()


class LooseEngine(Engine):
    """Knows loose pins by their type; to the scheduler they are pins like others."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """As an `Engine`; what it draws itself nobody can ask for again."""
        super().__init__(*args, **settings)
        self._rng = np.random.default_rng()
        self._front: tuple[LatencyProfile, list[SubnetProfile]] | None = None

    def submit(
        self,
        samples: np.ndarray,
        *,
        arrival_s: float,
        options: RequestOptions,
        on_done: Callable[[Job], None],
    ) -> Job:
        """Queue a request; a loose pin that can't be kept from the start is left out."""
        if isinstance(options.subnet_id, LoosePin):
            with self._lock:
                is_kept = self._affords(options, len(samples))
            if not is_kept:
                options = options._replace(subnet_id=None)
        return super().submit(samples, arrival_s=arrival_s, options=options, on_done=on_done)

    def _affords(self, options: RequestOptions, count: int) -> bool:
        """Whether a pin fits between now and the deadline, beside the longest batch of one."""
        profile, pin = self._scheduler.profile, options.subnet_id
        row_s = profile.table().get(str(pin))
        if row_s is None or profile.accuracy(str(pin)) < options.min_accuracy:
            return False  # since the draw other subnets are offered
        free_s = self._under_way.free_at_s(self.clock())
        takes_s = row_s[min(count, profile.max_batch_size)]
        return free_s + takes_s + _longest_s(profile) <= options.deadline_s

    def _poll(self, now_s: float, others: DeviceLoad) -> Dispatch:
        refused = self._let_go(now_s, self._under_way.free_at_s(now_s))
        dispatch = super()._poll(now_s, others)
        return dispatch._replace(dropped=(*refused, *dispatch.dropped)) if refused else dispatch

    def _let_go(self, now_s: float, start_s: float) -> list[Outcome]:
        """Let pins go where a deadline needs it, should the next batch begin at `start_s`.

        Return queries that none can serve any more.
        """
        waiting = self._scheduler.waiting()
        if not any(isinstance(query.subnet_id, LoosePin) for query in waiting):
            return []
        profile = self._scheduler.profile
        gone = loosened(waiting, profile, start_s)
        pin = self._gathered(gone, waiting, start_s) if gone else None
        refused: list[Outcome] = []
        for query in gone:
            if self._scheduler.cancel(query.query_id, now_s, LOOSENED) is None:
                continue
            other = query._replace(subnet_id=pin)
            ticket = self._ledger.open[query.query_id]
            self._ledger.open[query.query_id] = ticket._replace(query=other)
            outcome = self._scheduler.submit(other, now_s)
            if outcome is not None:
                refused.append(outcome)
        return refused

    def _gathered(
        self, gone: Sequence[Query], waiting: Sequence[Query], now_s: float
    ) -> LoosePin | None:
        profile = self._scheduler.profile
        if self._front is None or self._front[0] is not profile:
            self._front = profile, front_of(profile)
        return gathered(gone, waiting, self._front[1], profile, now_s, self._rng)


def front_of(profile: LatencyProfile) -> list[SubnetProfile]:
    """Return the subnets that no other beats, in order of accuracy, and so of time."""
    return sorted(profile.pareto().subnets, key=lambda subnet: subnet.accuracy)


def loosened(waiting: Sequence[Query], profile: LatencyProfile, free_at_s: float) -> list[Query]:
    """Return the queries whose pins should go; `waiting` is earliest deadline first."""
    walk = _PinnedBacklog(profile)
    room_s = _longest_batch_s(waiting, profile)
    kept: list[Query] = []
    gone: list[Query] = []
    for query in waiting:
        is_loose = isinstance(query.subnet_id, LoosePin)
        walk.add(query)
        if is_loose:
            kept.append(query)
        usable_s = (query.deadline_s - free_at_s) * _KEPT_SHARE
        if kept and walk.duration_s() + room_s > usable_s:
            for other in kept:
                walk.remove(other)
                walk.add(other._replace(subnet_id=None))
            gone += kept
            kept = []
    return gone


def gathered(
    gone: Sequence[Query],
    waiting: Sequence[Query],
    front: Sequence[SubnetProfile],
    profile: LatencyProfile,
    free_at_s: float,
    rng: np.random.Generator,
) -> LoosePin | None:
    """Return one pin for queries that lose theirs, which keeps every deadline; None for none.

    Drawn among the `_GATHERED` most accurate such, above all their floors. Along the front
    (`front_of`) times grow with accuracies, so the most accurate one is found by halving, and those
    below it do, too.
    """
    floor = max(query.min_accuracy for query in gone)
    ids = {query.query_id for query in gone}
    front = [subnet for subnet in front if subnet.accuracy >= floor]

    def fits(place: int) -> bool:
        pin = LoosePin(front[place].subnet_id)
        tried = [q._replace(subnet_id=pin) if q.query_id in ids else q for q in waiting]
        return not loosened(tried, profile, free_at_s)

    count = bisect_left(range(len(front)), True, key=lambda place: not fits(place))
    if count < _LEAST_GATHERED:
        return None
    drawn = int(rng.integers(max(0, count - _GATHERED), count))
    return LoosePin(front[drawn].subnet_id)


class _PinnedBacklog:
    """How long some queries take when each runs with those of its subnet."""

    def __init__(self, profile: LatencyProfile) -> None:
        self._profile = profile
        self._table = profile.table()
        self._eligible = Eligibility(profile, "p50")
        self._samples: Counter[str] = Counter()
        self._others = 0

    def add(self, query: Query) -> None:
        self._count(query, query.samples)

    def remove(self, query: Query) -> None:
        self._count(query, -query.samples)

    def _count(self, query: Query, samples: int) -> None:
        if query.subnet_id is None and query.min_accuracy <= 0:
            self._others += samples
            return
        subnet_id = self._eligible.fastest(query, 1)
        if subnet_id is not None:  # hopeless, and dropped by the next poll
            self._samples[str(subnet_id)] += samples

    def duration_s(self) -> float:
        """Return the time of all of them, in batches as large as there are."""
        largest = self._profile.max_batch_size
        total_s = self._profile.fastest().duration_s(self._others)
        for subnet_id, count in self._samples.items():
            row_s = self._table[subnet_id]
            full, rest = divmod(count, largest)
            total_s += full * row_s[largest] + row_s[rest]
        return total_s


def _longest_batch_s(waiting: Sequence[Query], profile: LatencyProfile) -> float:
    """Return the time of the longest batch of those that wait for one subnet, in seconds."""
    counts = Counter[str]()
    for query in waiting:
        if query.subnet_id is not None:
            counts[str(query.subnet_id)] += query.samples
    table, largest = profile.table(), profile.max_batch_size
    return max((table[i][min(n, largest)] for i, n in counts.items() if i in table), default=0.0)


def _longest_s(profile: LatencyProfile) -> float:
    return max(row_s[1] for row_s in profile.table().values())
