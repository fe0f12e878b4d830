"""The waiting queries, earliest deadline first.

Two parallel lists sorted by deadline (equal deadlines in order of arrival), of which the first
`_first` entries have left. A heap would give the head as fast, but not `count_due`, which
policies that look beyond the head need.

Cost for n waiting: push O(1) when deadlines arrive in order (one SLO: EDF is FIFO), else
O(log n) comparisons plus a shift of n pointers inside C (about 2 us at n = 10,000); head O(1);
count_due O(log n); pop O(count) amortised; remove as an unordered push. Removal is at once, not
lazy: so no read ever has to look past a cancelled query.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from slackfit.query import Query

COMPACT_FROM = 1024  # entries that may stay behind before the lists are cut


class EdfQueue:
    """Queries sorted by deadline; implements `slackfit.policy.QueueView`.

    >>> queue = EdfQueue()
    >>> for deadline_s in (3.0, 1.0, 2.0):
    ...     queue.push(Query(query_id=int(deadline_s), arrival_s=0.0, deadline_s=deadline_s))
    >>> queue.head().query_id, queue.count_due(2.0), len(queue)
    (1, 2, 3)
    >>> [query.query_id for query in queue.pop(2)]
    [1, 2]
    """

    __slots__ = ("_deadlines", "_first", "_queries")

    def __init__(self) -> None:
        self._deadlines: list[float] = []
        self._queries: list[Query] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._queries) - self._first

    def __iter__(self) -> Iterator[Query]:
        return islice(self._queries, self._first, None)

    def head(self) -> Query:
        """Return the most urgent query. Raises IndexError when the queue is empty."""
        return self._queries[self._first]

    def count_due(self, deadline_s: float) -> int:
        """Return how many waiting queries have a deadline <= `deadline_s`."""
        return bisect_right(self._deadlines, deadline_s, self._first) - self._first

    def earliest(self, count: int) -> Iterator[Query]:
        """Iterate over the `count` most urgent queries, fewer when fewer wait."""
        return iter(self._queries[self._first : self._first + count])

    def latest(self) -> Iterator[Query]:
        """Iterate over all that wait, the last due first."""
        return islice(reversed(self._queries), len(self))

    def push(self, query: Query) -> None:
        """Add a query behind those with the same or an earlier deadline."""
        deadlines = self._deadlines
        deadline_s = query.deadline_s
        if not deadlines or deadlines[-1] <= deadline_s:
            deadlines.append(deadline_s)
            self._queries.append(query)
            return
        at = bisect_right(deadlines, deadline_s, self._first)
        deadlines.insert(at, deadline_s)
        self._queries.insert(at, query)

    def extend(self, queries: Sequence[Query]) -> None:
        """Push several queries in turn; one append when their deadlines are in order."""
        added = [query.deadline_s for query in queries]
        deadlines = self._deadlines
        if added and (not deadlines or deadlines[-1] <= added[0]) and added == sorted(added):
            deadlines += added
            self._queries += queries
            return
        for query in queries:
            self.push(query)

    def pop(self, count: int) -> tuple[Query, ...]:
        """Remove and return the `count` most urgent queries, fewer when fewer wait."""
        taken = tuple(self._queries[self._first : self._first + count])
        self._leave(len(taken))
        return taken

    def pop_where(
        self, count: int, look_at: int, accepts: Callable[[Query], bool]
    ) -> tuple[Query, ...]:
        """Remove and return the first `count` queries that `accepts` takes.

        Only the `look_at` most urgent ones are asked; those refused keep their places.
        """
        taken: list[Query] = []
        kept: list[Query] = []
        for query in self.earliest(look_at):
            if len(taken) == count:
                break
            (taken if accepts(query) else kept).append(query)
        # The refused ones move up to where the entries that have not been looked at begin.
        start = self._first + len(taken)
        stop = start + len(kept)
        self._queries[start:stop] = kept
        self._deadlines[start:stop] = [query.deadline_s for query in kept]
        self._leave(len(taken))
        return tuple(taken)

    def remove(self, query: Query) -> bool:
        """Remove one query wherever it is; return False when it does not wait here."""
        lo = bisect_left(self._deadlines, query.deadline_s, self._first)
        hi = bisect_right(self._deadlines, query.deadline_s, lo)
        try:
            at = self._queries.index(query, lo, hi)
        except ValueError:
            return False
        del self._deadlines[at], self._queries[at]
        return True

    def _leave(self, count: int) -> None:
        self._first += count
        if self._first >= COMPACT_FROM and self._first * 2 >= len(self._queries):
            del self._deadlines[: self._first], self._queries[: self._first]
            self._first = 0
