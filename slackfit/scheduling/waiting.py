"""The waiting queries: which subnets may serve each, which are hopeless, how a batch is filled.

A query may be constrained: to a pinned subnet, to a floor on accuracy. It is hopeless when even the
fastest subnet that its constraints allow, at batch size 1, cannot finish by its deadline any more;
one that no subnet may serve is hopeless always.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nextafter, ulp

from slackfit.eligibility import Eligibility, is_plain
from slackfit.profile import LatencyProfile
from slackfit.query import Decision, Query
from slackfit.scheduling.edf import EdfQueue

_LOOK_AHEAD = 4  # queries looked at per place in a batch, when some are constrained


class WaitingQueries:
    """An EDF queue that knows its queries' constraints; without any it costs nothing extra."""

    __slots__ = ("_eligible", "_num_constrained", "_quantile", "_window", "edf")

    def __init__(self, profile: LatencyProfile, quantile: str) -> None:
        self.edf = EdfQueue()
        self._num_constrained = 0
        self._quantile = quantile
        self.use(profile)

    def use(self, profile: LatencyProfile) -> None:
        """Judge by `profile` from now on."""
        self._eligible = Eligibility(profile, self._quantile)
        self._window = _LOOK_AHEAD * profile.max_batch_size

    def latency_s(self, subnet_id: str, batch_size: int) -> float:
        """Return the predicted latency of a batch."""
        return self._eligible.table[subnet_id][batch_size]

    def accuracy(self, subnet_id: str) -> float:
        """Return the profiled accuracy of a subnet."""
        return self._eligible.accuracy[subnet_id]

    def knows(self, subnet_id: str) -> bool:
        """Whether the profile has this subnet."""
        return subnet_id in self._eligible.table

    def is_hopeless(self, query: Query, now_s: float, *, also_late: bool) -> bool:
        """Whether no subnet may serve `query`, or (`also_late`) none can in time any more."""
        if not also_late and is_plain(query):
            return False
        finish_s = self._eligible.earliest_finish_s(query, now_s)
        return finish_s is None or (also_late and finish_s > query.deadline_s)

    def hopeless_from_s(self) -> float:
        """Return a moment just after which the head is hopeless; the queue is not empty."""
        head = self.edf.head()
        finish_s = self._eligible.earliest_finish_s(head, 0.0)
        if finish_s is None:
            return head.arrival_s
        return head.deadline_s - finish_s + 2 * ulp(head.deadline_s)

    def push(self, query: Query) -> None:
        """Add a query."""
        self._num_constrained += not is_plain(query)
        self.edf.push(query)

    def can_take_unseen(self, queries: Sequence[Query], *, also_late: bool) -> bool:
        """Whether all are plain and, each at its own arrival, not hopeless."""
        needed_s = self._eligible.fastest_s if also_late else -inf
        for _, arrival_s, deadline_s, floor, _, pin, _, _, _ in queries:
            if pin is not None or floor > 0.0 or not arrival_s + needed_s <= deadline_s:
                return False
        return True

    def remove(self, query: Query) -> bool:
        """Remove a query wherever it is; False when it does not wait."""
        if not self.edf.remove(query):
            return False
        self._num_constrained -= not is_plain(query)
        return True

    def pop_hopeless(self, now_s: float, *, also_late: bool) -> list[Query]:
        """Remove and return the hopeless queries that could come into the next batch."""
        edf = self.edf
        found: list[Query] = []
        if self._num_constrained:  # they may be hopeless behind a head that is not
            for query in edf.earliest(self._window):
                if self.is_hopeless(query, now_s, also_late=also_late):
                    self.remove(query)
                    found.append(query)
        if also_late or self._num_constrained:
            while edf and self.is_hopeless(edf.head(), now_s, also_late=also_late):
                query = edf.head()
                self.remove(query)
                found.append(query)
        return found

    def pop_due_before(self, deadline_s: float) -> tuple[Query, ...]:
        """Remove and return the queries that are due before `deadline_s`."""
        count = self.edf.count_due(nextafter(deadline_s, -inf))
        queries = self.edf.pop(count)
        if self._num_constrained:
            self._num_constrained -= sum(not is_plain(query) for query in queries)
        return queries

    def pop_batch(self, decision: Decision, now_s: float) -> tuple[str, tuple[Query, ...]]:
        """Remove and return the queries of a batch and the subnet that they all may run on.

        The subnet is the decided one unless the head's constraints forbid it: then it is the
        fastest that they allow, and the batch is cut to what still meets the head's deadline there
        (if nothing does, it is kept). It is filled in EDF order with queries that may run there.
        """
        subnet_id, size = decision.subnet_id, decision.batch_size
        if not self._num_constrained:
            return subnet_id, self.edf.pop(size)
        eligible = self._eligible
        head = self.edf.head()
        if not eligible.accepts(head, subnet_id):
            legal = eligible.fastest(head, size)
            assert legal is not None, "a head that no subnet may serve was removed as hopeless"
            subnet_id = legal
            row = eligible.table[subnet_id]
            fitting = (b for b in range(size, 0, -1) if now_s + row[b] <= head.deadline_s)
            size = next(fitting, size)
        queries = self.edf.pop_where(
            size, _LOOK_AHEAD * size, lambda query: eligible.accepts(query, subnet_id)
        )
        self._num_constrained -= sum(not is_plain(query) for query in queries)
        return subnet_id, queries
