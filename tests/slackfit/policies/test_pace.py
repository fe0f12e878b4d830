"""The pace with others and with groups apart, held against the plain one."""

from __future__ import annotations

from math import inf
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slackfit.policies.apart import Apart, ApartGroup
from slackfit.policies.forecast import Arrivals, Forecast
from slackfit.policies.others import Others
from slackfit.policies.pace import DueBy, Supply, pace_alone, pace_shared
from slackfit.policy import ALONE, DeviceLoad, View, WishView, WorkerView
from slackfit.query import Query, Wish

SLO_S = 0.04
QUERY_S = 0.0005
NOBODY = Apart([], SLO_S)
floats = st.floats(0.0, 50.0)
demands = st.lists(
    st.builds(
        lambda slos, count, mean, sigma, is_queue: DueBy(
            slos * SLO_S, count, None if is_queue else Arrivals(slos * SLO_S, count, mean, sigma)
        ),
        st.floats(0.1, 8.0), st.integers(1, 500), floats, floats, st.booleans(),
    ),
    min_size=1,
    max_size=11,
)  # fmt: skip


def supply(num_workers: int = 2, lead_s: float = 0.007) -> Supply:
    return Supply([WorkerView(i, 0.003 * i, None) for i in range(num_workers)], 0.0, lead_s)


@given(demands, st.integers(1, 500))
def test_where_nothing_is_shared_both_are_the_same(found, num_waiting):
    others = Others(ALONE, SLO_S, QUERY_S)
    found = [
        d if d.arrivals is None else d._replace(num_due=num_waiting + d.num_due) for d in found
    ]
    plain = pace_alone(found, supply(), num_waiting, QUERY_S, 3.0)
    shared = pace_shared(found, supply(), num_waiting, QUERY_S, 3.0, others, NOBODY)
    assert shared.reserved_s == pytest.approx(plain.reserved_s)
    assert shared.pace_s == pytest.approx(plain.pace_s)
    assert others.longest_batch_s == inf


def later(count: int, slos: float = 2.0) -> list[DueBy]:
    return [DueBy(slos * SLO_S, count, Arrivals(slos * SLO_S, 0.0, 0.0, 0.0))]


def test_others_that_wait_count_as_if_they_stood_in_the_queue():
    load = DeviceLoad(1, 30 * QUERY_S, 0.0, SLO_S)
    alone = pace_alone(later(40), supply(), 40, QUERY_S, 0.0)
    found = pace_shared(later(10), supply(), 10, QUERY_S, 0.0, Others(load, SLO_S, QUERY_S), NOBODY)
    assert found.pace_s == pytest.approx(alone.pace_s)


def test_others_that_ask_for_everything_are_given_an_equal_part():
    load = DeviceLoad(1, 1000.0, 1000.0, SLO_S)
    found = pace_shared(later(10), supply(1), 10, 1e-9, 0.0, Others(load, SLO_S, 1e-9), NOBODY)
    part_s = supply(1).until(2 * SLO_S) / 2
    assert found.pace_s * 10 <= part_s
    assert load.left == 0.5


def test_what_is_served_apart_is_off_the_supply_before_the_others_are_looked_at():
    head = Query(0, 0.0, SLO_S, subnet_id="large")
    view = WishView(Wish("large"), head, 4, 100.0)
    apart = Apart([ApartGroup(view, "large", (0.0, 0.002), 0.002)], SLO_S)
    found = pace_shared(later(10), supply(), 10, QUERY_S, 0.0, Others(ALONE, SLO_S, QUERY_S), apart)
    left_s = supply().until(2 * SLO_S) - 4 * 0.002 - 100 * SLO_S * 0.002
    assert found.pace_s == pytest.approx(left_s / 6)


def test_the_group_that_must_start_soonest_is_the_most_urgent():
    rows = {"short": (0.0, 0.001, 0.002), "long": (0.0, 0.02, 0.03)}
    groups = [
        ApartGroup(
            WishView(Wish(name), Query(i, 0.0, due_s, subnet_id=name), 2, 0.0), name, row, 0.01
        )
        for i, (name, row, due_s) in enumerate(
            [("short", rows["short"], 0.03), ("long", rows["long"], 0.04)]
        )
    ]
    group, size, laxity_s = Apart(groups, SLO_S).most_urgent(0.0, 16) or pytest.fail("none")
    assert (group.subnet_id, size, laxity_s) == ("long", 2, pytest.approx(0.01))
    group, size, _ = Apart(groups[1:], SLO_S).most_urgent(0.015, 16) or pytest.fail("none")
    assert size == 1, "cut to what the head affords"


def group(accuracy: float, num_waiting: int, query_s: float) -> ApartGroup:
    wish = Wish(None, accuracy)
    head = Query(0, 0.0, 0.01, accuracy) if num_waiting else None
    return ApartGroup(WishView(wish, head, num_waiting, 50.0), "s", [0.0, query_s], query_s)


def test_a_floor_below_that_of_a_group_apart_is_not_of_it():
    """Else nobody served it: its own group was not apart, and the one apart had nothing waiting."""
    low, high = group(0.7, 2, 0.001), group(0.9, 0, 0.004)
    apart = Apart([high], SLO_S)
    assert not apart.holds(Query(1, 0.0, 1.0, 0.65), [low, high])
    assert apart.holds(Query(1, 0.0, 1.0, 0.8), [low, high])


def test_where_all_that_is_due_is_served_apart_there_is_no_pace():
    apart = Apart([group(0.9, 10, 0.02)], SLO_S)
    others = Others(ALONE, SLO_S, QUERY_S)
    assert pace_shared([DueBy(0.01, 5)], supply(), 10, QUERY_S, 0.0, others, apart) == (inf, inf)


def test_a_window_that_is_resized_just_as_it_ends_has_nothing_to_add():
    """A tighter SLO at the very moment of an update once divided by a length of zero."""
    ended = Forecast(0.02, 1.0, 1.02, 3, 100.0, 2.0, 90.0)
    resized = ended.resized(0.005, 1.0)
    assert resized.until_s == 1.0
    assert resized.update(cast("View", None), 1.0) == resized
