"""The waiting queries: which subnets may serve each, which are hopeless, how a batch is filled.

A query may be constrained: to a pinned subnet, to a floor on accuracy. It is hopeless when even the
fastest subnet that its constraints allow, alone in its batch, cannot finish by its deadline any
more; one that no subnet may serve is hopeless always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nextafter, ulp

from slackfit.eligibility import Eligibility, is_plain
from slackfit.policy import QueueView, WishView
from slackfit.profile import LatencyProfile
from slackfit.query import PLAIN, Decision, Query, Wish
from slackfit.scheduling.edf import EdfQueue
from slackfit.scheduling.sample_counts import SampleCounts
from slackfit.scheduling.standing import Ranks, Standing
from slackfit.scheduling.wishes import WishGroups
from slackfit.scheduling.work_mix import WorkMix, WorkRoom

LOOK_AHEAD = 4  # queries looked at per place in a batch, when some are constrained


class WaitingQueries:
    """An EDF queue that knows its queries' constraints; without any it costs nothing extra."""

    __slots__ = ("_eligible", "_mix", "_num_special", "_quantile", "_unservable", "_window",
                 "_wishes", "edf", "num_samples_more", "standing")  # fmt: skip

    def __init__(self, profile: LatencyProfile, quantile: str, standing: Standing) -> None:
        self.edf = EdfQueue()
        self.standing = standing
        self._num_special = 0
        self._quantile = quantile
        #: How many more samples than queries wait.
        self.num_samples_more = 0
        self.use(profile)

    def use(self, profile: LatencyProfile) -> None:
        """Judge by `profile` from now on."""
        self._eligible = Eligibility(profile, self._quantile)
        self._mix = WorkMix.of(profile, self._quantile)
        self._window = LOOK_AHEAD * profile.max_batch_size
        self._wishes = WishGroups(profile)
        self._unservable: set[int] = set()  # of queries that came with another profile
        if self._num_special:
            for query in self.edf:
                self._wishes.add(query)
                if self.is_hopeless(query, 0.0, also_late=False):
                    self._unservable.add(query.query_id)

    @property
    def queue(self) -> QueueView:
        """The queue as policies see it: its counts are of samples."""
        return SampleCounts(self.edf, self.num_samples) if self.num_samples_more else self.edf

    @property
    def num_samples(self) -> int:
        """How many samples wait."""
        return len(self.edf) + self.num_samples_more

    @property
    def num_ordinary(self) -> int:
        """How many of the queries that wait are ordinary."""
        return len(self.edf) - self._num_special

    @property
    def _is_mixed(self) -> bool:
        """Whether the first of the queue may not just be taken together."""
        return self._wishes.num_waiting > 0 or self.num_samples_more > 0

    def wishes(self, now_s: float) -> tuple[WishView, ...]:
        """Return what waits and arrives of queries that may not run on every subnet."""
        return self._wishes.views(now_s)

    def latency_s(self, subnet_id: str, queries: Sequence[Query], num_samples: int) -> float:
        """Return the predicted latency of a batch of `queries`, which hold so many samples."""
        if self._mix is not None:
            return self._mix.latency_s(subnet_id, queries)
        return self._eligible.table[subnet_id][num_samples]

    def profile_of_head(self, profile: LatencyProfile) -> LatencyProfile:
        """Return the profile in use, or its part for work like the head's where it knows work.

        The queue is not empty.
        """
        return profile if self._mix is None else self._mix.profile_of(self.edf.head())

    def accuracy(self, subnet_id: str) -> float:
        """Return the profiled accuracy of a subnet."""
        return self._eligible.accuracy[subnet_id]

    def knows(self, subnet_id: str) -> bool:
        """Whether the profile has this subnet."""
        return subnet_id in self._eligible.table

    def is_hopeless(self, query: Query, now_s: float, *, also_late: bool) -> bool:
        """Whether no subnet may serve `query`, or (`also_late`) none can in time any more."""
        if not also_late and query.samples == 1 and is_plain(query):
            return False
        finish_s = self._eligible_of(query).earliest_finish_s(query, now_s)
        return finish_s is None or (also_late and finish_s > query.deadline_s)

    def hopeless_from_s(self) -> float:
        """Return a moment just after which the head is hopeless; the queue is not empty."""
        head = self.edf.head()
        finish_s = self._eligible_of(head).earliest_finish_s(head, 0.0)
        if finish_s is None:
            return head.arrival_s
        return head.deadline_s - finish_s + 2 * ulp(head.deadline_s)

    def push(self, query: Query) -> None:
        """Add a query that some subnet may serve."""
        self.edf.push(query)
        if not is_ordinary(query):
            self._num_special += 1
            self.num_samples_more += query.samples - 1
            self._wishes.add(query)
            self.standing.add(query)

    def extend(self, queries: Sequence[Query]) -> None:
        """Add queries that `can_take_unseen`."""
        self.edf.extend(queries)

    def can_take_unseen(self, queries: Sequence[Query], *, also_late: bool) -> bool:
        """Whether all are ordinary and, each at its own arrival, not hopeless."""
        if self._mix is not None and also_late:
            return False  # how long each takes at the least depends on its work
        needed_s = self._eligible.fastest_s if also_late else -inf
        for _, arrival_s, deadline_s, floor, class_, pin, samples, _, tenant, _ in queries:
            if pin is not None or floor > 0.0 or class_ or samples != 1 or tenant:
                return False
            if not arrival_s + needed_s <= deadline_s:
                return False
        return True

    def remove(self, query: Query) -> bool:
        """Remove a query wherever it is; False when it does not wait."""
        if not self.edf.remove(query):
            return False
        self._forget((query,))
        return True

    def remove_all(self, queries: Sequence[Query]) -> None:
        """Remove queries that wait, given most urgent first."""
        if list(self.edf.earliest(len(queries))) == list(queries):
            self._forget(self.edf.pop(len(queries)))
            return
        for query in queries:
            self.remove(query)

    def pop_hopeless(self, now_s: float, *, also_late: bool) -> list[Query]:
        """Remove and return the hopeless queries that could come into the next batch."""
        edf = self.edf
        found: list[Query] = []
        is_mixed = self._is_mixed
        if is_mixed:  # some may be hopeless behind a head that is not
            until_s = self._safe_from_s(now_s, also_late=also_late)
            for query in edf.earliest(self._window):
                if query.deadline_s >= until_s:
                    break
                if self.is_hopeless(query, now_s, also_late=also_late):
                    self.remove(query)
                    found.append(query)
        if also_late or is_mixed:
            while edf and self.is_hopeless(edf.head(), now_s, also_late=also_late):
                query = edf.head()
                self.remove(query)
                found.append(query)
        return found

    def _safe_from_s(self, now_s: float, *, also_late: bool) -> float:
        """Return a deadline from which on no query is hopeless, whatever it may run on."""
        if self._unservable:
            return inf
        if not also_late:
            return -inf
        return inf if self._mix is not None else now_s + self._eligible.longest_s

    def pop_due_before(self, deadline_s: float) -> tuple[Query, ...]:
        """Remove and return the queries that are due before `deadline_s`."""
        count = self.edf.count_due(nextafter(deadline_s, -inf))
        queries = self.edf.pop(count)
        self._forget(queries)
        return queries

    def behind(
        self, query: Query, ranks: Ranks, *, of_tenant: int, of_all: int
    ) -> list[Query] | None:
        """Return whom to evict for a newcomer: so many samples of its tenant's, so many in all.

        The latest-due of the lowest rank go, if the newcomer is of a higher rank or due earlier;
        None when they are not enough. Nothing is removed.
        """
        newcomer = ranks.of(query)
        lowest = self.standing.lowest(ranks, self.num_ordinary) if self.edf else newcomer
        evicted: list[Query] = []
        if of_all > 0 and of_tenant <= 0 and newcomer < lowest:
            return None
        for waiting in self.edf.latest():
            if of_tenant <= 0 and of_all <= 0:
                break
            if waiting.deadline_s <= query.deadline_s and newcomer <= lowest:
                break  # from here on all are due earlier, and none is of a lower rank
            rank = ranks.of(waiting)
            is_own = waiting.tenant == query.tenant
            counts = is_own if of_tenant > 0 else rank == lowest
            stands_behind = rank < newcomer or (
                rank == newcomer and waiting.deadline_s > query.deadline_s
            )
            if counts and stands_behind:
                evicted.append(waiting)
                of_tenant -= waiting.samples * is_own
                of_all -= waiting.samples
        return evicted if of_tenant <= 0 and of_all <= 0 else None

    def pop_batch(self, decision: Decision, now_s: float) -> tuple[str, tuple[Query, ...]]:
        """Remove and return the queries of a batch and the subnet that they all may run on.

        A decision for a wish takes queries with that wish only. Else the subnet is the decided one
        unless the head's constraints forbid it: then it is the fastest that they allow, the batch
        is cut to what still meets the head's deadline there (if nothing does, it is kept), and it
        holds only queries that the decided subnet may not serve either: the others did not ask for
        a slower one. It is filled in EDF order with queries that have room in it; where work is
        known, those that would take it beyond what was decided wait (`WorkMix`).
        """
        if not self._is_mixed:
            queries = self._pop_plain(decision)
            self._forget(queries)
            return decision.subnet_id, queries
        if decision.wish not in (None, PLAIN):
            queries = self._with_wish(decision.wish, decision)
            if queries:
                return decision.subnet_id, queries
        eligible, subnet_id, size = self._eligible, decision.subnet_id, decision.batch_size
        head = self.edf.head()
        if decision.wish == PLAIN or eligible.accepts(head, subnet_id):
            queries = self._pop_first(
                size, subnet_id, lambda query: eligible.accepts(query, subnet_id)
            )
            if queries:
                return subnet_id, queries
        legal = eligible.fastest(head, size)
        assert legal is not None, "a head that no subnet may serve was removed as hopeless"
        row = eligible.table[legal]
        fitting = (b for b in range(size, 0, -1) if now_s + row[b] <= head.deadline_s)
        return legal, self._pop_first(
            next(fitting, size),
            legal,
            lambda query: eligible.accepts(query, legal) and not eligible.accepts(query, subnet_id),
        )

    def _eligible_of(self, query: Query) -> Eligibility:
        return self._eligible if self._mix is None else self._mix.eligible(query)

    def _work_room(self, subnet_id: str, size: int) -> WorkRoom | None:
        mix = self._mix
        return None if mix is None else mix.room(subnet_id, size, self.edf.head())

    def _pop_plain(self, decision: Decision) -> tuple[Query, ...]:
        """Remove and return queries that may run on every subnet, one sample each."""
        size = decision.batch_size
        work = self._work_room(decision.subnet_id, size)
        if work is None:
            return self.edf.pop(size)
        return self.edf.pop_where(size, LOOK_AHEAD * size, _Room(size, _any, work))

    def _pop_first(
        self, size: int, subnet_id: str, accepts: Callable[[Query], bool]
    ) -> tuple[Query, ...]:
        room = _Room(size, accepts, self._work_room(subnet_id, size))
        queries = self.edf.pop_where(size, LOOK_AHEAD * size, room)
        self._forget(queries)
        return queries

    def _with_wish(self, wish: Wish, decision: Decision) -> tuple[Query, ...]:
        """Remove and return the most urgent queries with a wish, none if they may not run so."""
        size, subnet_id = decision.batch_size, decision.subnet_id
        work = self._work_room(subnet_id, size)
        fits = _Room(size, lambda query: self._eligible.accepts(query, subnet_id), work)
        queries = tuple(q for q in self._wishes.earliest(wish, LOOK_AHEAD * size) if fits(q))
        for query in queries:
            self.remove(query)
        return queries

    def _forget(self, queries: Sequence[Query]) -> None:
        """Let go of queries that have left the queue."""
        if not self._num_special:
            return
        for query in queries:
            if not is_ordinary(query):
                self._num_special -= 1
                self._unservable.discard(query.query_id)
                self.num_samples_more -= query.samples - 1
                self._wishes.remove(query)
                self.standing.remove(query)


def is_ordinary(query: Query) -> bool:
    """Whether the query is one sample of nobody in particular, without wish or priority."""
    is_one = query.samples == 1 and not query.query_class and not query.tenant
    return is_one and is_plain(query)


def _any(query: Query) -> bool:
    return True


class _Room:
    """Takes the queries that may run, while there is room for their samples; the first anyhow."""

    __slots__ = ("_accepts", "_is_empty", "_left", "_work")

    def __init__(self, size: int, accepts: Callable[[Query], bool], work: WorkRoom | None) -> None:
        self._left = size
        self._work = work
        self._is_empty = True
        self._accepts = accepts

    def __call__(self, query: Query) -> bool:
        if (query.samples > self._left and not self._is_empty) or not self._accepts(query):
            return False
        if self._work is not None:
            if not self._work.fits(query):
                return False
            self._work.take(query)
        self._left -= query.samples
        self._is_empty = False
        return True
