"""The EDF queue against a plain sorted list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slackfit.query import Query
from slackfit.scheduling.edf import EdfQueue


def query(query_id: int, deadline_s: float) -> Query:
    return Query(query_id=query_id, arrival_s=0.0, deadline_s=deadline_s)


class PlainQueue:
    """The specification: a list sorted by (deadline, order of arrival) before every read."""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def push(self, new: Query) -> None:
        self.queries.append(new)
        self.queries.sort(key=lambda q: q.deadline_s)  # stable

    def pop(self, count: int) -> tuple[Query, ...]:
        taken, self.queries = self.queries[:count], self.queries[count:]
        return tuple(taken)

    def pop_where(self, count: int, look_at: int, accepts) -> tuple[Query, ...]:
        taken = [q for q in self.queries[:look_at] if accepts(q)][:count]
        self.queries = [q for q in self.queries if q not in taken]
        return tuple(taken)

    def remove(self, gone: Query) -> bool:
        if gone not in self.queries:
            return False
        self.queries.remove(gone)
        return True

    def count_due(self, deadline_s: float) -> int:
        return sum(q.deadline_s <= deadline_s for q in self.queries)


deadlines = st.integers(0, 12).map(float)  # few values, so that many are equal
steps = st.one_of(
    st.tuples(st.just("push"), deadlines),
    st.tuples(st.just("extend"), st.lists(deadlines, max_size=5)),
    st.tuples(st.just("pop"), st.integers(0, 4)),
    st.tuples(st.just("pop_where"), st.integers(1, 4)),
    st.tuples(st.just("remove"), st.integers(0, 40)),
)


@given(st.lists(steps, max_size=60))
def test_any_sequence_of_calls_agrees_with_a_plain_sorted_list(calls):
    queue, plain, made = EdfQueue(), PlainQueue(), []

    def make(deadline_s: float) -> Query:
        made.append(query(len(made), deadline_s))
        return made[-1]

    for verb, value in calls:
        if verb == "push":
            new = make(value)
            queue.push(new)
            plain.push(new)
        elif verb == "extend":
            several = [make(deadline_s) for deadline_s in value]
            queue.extend(several)
            for new in several:
                plain.push(new)
        elif verb == "pop":
            assert queue.pop(value) == plain.pop(value)
        elif verb == "pop_where":
            asked = (value, 2 * value, lambda q: q.query_id % 3 > 0)
            assert queue.pop_where(*asked) == plain.pop_where(*asked)
        elif value < len(made):
            assert queue.remove(made[value]) == plain.remove(made[value])
        assert list(queue) == plain.queries
        assert len(queue) == len(plain.queries)
        assert list(queue.earliest(3)) == plain.queries[:3]
        assert [queue.count_due(d) for d in (0.0, 5.5, 12.0)] == [
            plain.count_due(d) for d in (0.0, 5.5, 12.0)
        ]


def test_equal_deadlines_leave_in_order_of_arrival():
    queue = EdfQueue()
    for query_id, deadline_s in enumerate([2.0, 1.0, 2.0, 1.0]):
        queue.push(query(query_id, deadline_s))
    assert [q.query_id for q in queue.pop(4)] == [1, 3, 0, 2]


def test_a_removed_query_counts_no_more():
    queue = EdfQueue()
    queries = [query(i, float(i)) for i in range(3)]
    queue.extend(queries)
    assert queue.remove(queries[1])
    assert (len(queue), queue.count_due(2.0), list(queue)) == (2, 2, [queries[0], queries[2]])
    assert not queue.remove(queries[1])


def test_head_of_an_empty_queue_is_an_index_error():
    queue = EdfQueue()
    queue.push(query(0, 1.0))
    queue.pop(1)
    with pytest.raises(IndexError):
        queue.head()


def test_memory_stays_with_what_waits():
    queue = EdfQueue()
    for i in range(20_000):
        queue.push(query(i, float(i)))
        if i >= 10:
            queue.pop(1)
    assert len(queue) == 10
    assert len(queue._queries) < 4096


def test_order_survives_many_random_deadlines():
    rng = np.random.default_rng(0)
    queue = EdfQueue()
    for i, deadline_s in enumerate(rng.uniform(0, 1, 5000).tolist()):
        queue.push(query(i, deadline_s))
    popped = [q.deadline_s for _ in range(500) for q in queue.pop(10)]
    assert popped == sorted(popped)
