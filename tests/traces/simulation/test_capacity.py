from __future__ import annotations

import re

import pytest

from traces.generators.arrivals import poisson
from traces.simulation.capacity import Goal, find_capacity, parse_goal
from traces.trace import TraceError


@pytest.mark.parametrize("start_qps", [50.0, 400.0, 6400.0])
def test_bisection_finds_the_rate_where_the_target_is_just_met(start_qps):
    trace = poisson(start_qps, 20.0)
    found = find_capacity(trace, Goal("attainment", 0.9), lambda t: 1.0 - t.rate_qps / 10_000)
    assert 1000 / 1.011 <= found.rate_qps <= 1000 * (1 + 1e-9)
    assert all(value == pytest.approx(1 - rate / 10_000) for rate, value in found.tried)


def test_a_target_that_no_rate_meets_has_capacity_0():
    found = find_capacity(poisson(10.0, 5.0), Goal("attainment", 0.9), lambda _: 0.1)
    assert found.rate_qps == 0.0


def test_a_goal_is_met_by_a_figure_that_falls_short_of_it_by_a_rounding():
    found = find_capacity(
        poisson(100.0, 5.0),
        Goal("utility", 0.7944),
        lambda t: 0.7943999999999999 if t.rate_qps <= 400.0 else 0.79,
    )
    assert 400.0 / 1.011 <= found.rate_qps <= 400.0 * (1 + 1e-9)
    missed = find_capacity(poisson(100.0, 5.0), Goal("utility", 0.7944), lambda _: 0.79439)
    assert missed.rate_qps == 0.0


@pytest.mark.parametrize(
    "text",
    ["attainment", "attainment=2", "utility=0.9.9", "utility=.", "speed=0.9", "attainment=0", ""],
)
def test_a_target_that_is_not_understood_says_what_is(text):
    message = (
        f"target {text!r} is not understood; give attainment or utility=FRACTION, "
        "as in attainment=0.999"
    )
    with pytest.raises(TraceError, match=f"^{re.escape(message)}$"):
        parse_goal(text)
