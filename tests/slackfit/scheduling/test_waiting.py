"""The hopeless among those that wait: found with few looked at, as by looking at each."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from slackfit import LatencyProfile, Query
from slackfit.profile import SubnetProfile
from slackfit.scheduling.standing import Standing
from slackfit.scheduling.waiting import LOOK_AHEAD, WaitingQueries


def profile(*rows_s: tuple[float, ...], batch_sizes: tuple[int, ...] = (1, 4)) -> LatencyProfile:
    """Return a profile of subnets `s0`, `s1` ... of rising accuracy."""
    subnets = tuple(
        SubnetProfile(subnet_id=f"s{i}", accuracy=0.8 + i / 10, macs=0, latency_s={"p50": row})
        for i, row in enumerate(rows_s)
    )
    return LatencyProfile(
        name="two", device="nowhere", dtype="float32", batch_sizes=batch_sizes, subnets=subnets
    )


BOTH = profile((0.001, 0.002), (0.004, 0.010))
FIRST = profile((0.001, 0.002))
SINGLES = profile((0.001,), (0.004,), batch_sizes=(1,))


def waiting(queries: Sequence[Query], used: LatencyProfile = BOTH) -> WaitingQueries:
    found = WaitingQueries(used, "p50", Standing())
    for query in queries:
        found.push(query)
    return found


def query(number: int, slack_ms: int, samples: int, floor: float, pin: str | None) -> Query:
    return Query(number, 0.0, slack_ms * 1e-3, floor, subnet_id=pin, samples=samples)


QUERIES = st.lists(
    st.tuples(
        st.integers(-2, 30),
        st.sampled_from([1, 1, 2, 4]),
        st.sampled_from([0.0, 0.0, 0.85]),
        st.sampled_from([None, None, "s0", "s1"]),
    ).filter(lambda drawn: not (drawn[2] and drawn[3] == "s0")),
    max_size=15,
).map(lambda drawn: [query(number, *values) for number, values in enumerate(drawn)])


@given(
    QUERIES,
    st.sampled_from([0.0, 0.003, 0.0100001]),
    st.booleans(),
    st.sampled_from([BOTH, FIRST, SINGLES, BOTH.scaled(3.0, 0.001)]),
)
def test_the_hopeless_are_those_that_a_look_at_each_finds(
    queries: list[Query], now_s: float, also_late: bool, used_then: LatencyProfile
) -> None:
    held = waiting(queries)
    held.use(used_then)
    hopeless = [
        q
        for q in sorted(queries, key=lambda q: q.deadline_s)
        if held.is_hopeless(q, now_s, also_late=also_late)
    ]
    is_mixed = any(q.samples > 1 or q.subnet_id or q.min_accuracy for q in queries)
    expected = hopeless if is_mixed or also_late else []
    found = held.pop_hopeless(now_s, also_late=also_late)
    while more := held.pop_hopeless(now_s, also_late=also_late):
        found += more  # of a further window
    assert found == expected[: len(found)]
    left = list(held.edf)[: LOOK_AHEAD * used_then.max_batch_size]
    assert not set(left) & set(expected)
    assert len(held.edf) == len(queries) - len(found)


def test_those_with_time_enough_are_not_looked_at() -> None:
    held = waiting([query(i, 100 + i, 2, 0.0, None) for i in range(50)])
    with patch.object(WaitingQueries, "is_hopeless", return_value=False) as asked:
        assert held.pop_hopeless(0.0, also_late=True) == []
    assert asked.call_count == 1  # the head


def test_what_a_new_profile_cannot_serve_is_found_behind_those_with_time() -> None:
    held = waiting([query(0, 100, 2, 0.0, None), query(1, 200, 1, 0.85, None)])
    held.use(FIRST)
    assert [q.query_id for q in held.pop_hopeless(0.0, also_late=False)] == [1]
    held.use(SINGLES)
    assert [q.query_id for q in held.pop_hopeless(0.0, also_late=True)] == [0]
