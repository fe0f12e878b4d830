"""Generators do what was asked for: rate and burstiness within confidence limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.burstiness import count_moments, gap_cv2
from traces.generators.arrivals import bursty, gamma, poisson
from traces.generators.patterns import diurnal, flash, mmpp, mmpp_dispersion, step
from traces.spec.spec import SpecError, parse_spec
from traces.trace import TraceError

SIGMAS = 5.0  # a property test draws many cases: each may be off once in two million
fast = settings(max_examples=25, deadline=None)


def check_count(found: float, wanted: float, variance: float) -> None:
    assert abs(found - wanted) <= SIGMAS * variance**0.5 + 1


@fast
@given(rate=st.floats(1.0, 2000.0), seed=st.integers(0, 10_000))
def test_poisson_has_its_rate(rate, seed):
    trace = poisson(rate, 10.0, seed=seed)
    check_count(len(trace), rate * 10, rate * 10)


@fast
@given(
    rate=st.floats(200.0, 2000.0), cv2=st.sampled_from([0.1, 0.5, 1, 2, 4, 8]), seed=st.integers(0)
)
def test_gamma_has_its_rate_and_cv2(rate, cv2, seed):
    trace = gamma(rate, cv2, 20.0, seed=seed)
    check_count(len(trace), rate * 20 + (cv2 - 1) / 2, rate * 20 * cv2)
    found = gap_cv2(trace.arrival_s)
    assert found is not None
    # Delta method on mean and variance; a gamma's third and fourth moments follow from its CV^2.
    spread = (cv2**2 * (2 + 2 * cv2) / len(trace)) ** 0.5
    assert abs(found - cv2) <= SIGMAS * spread + 10 * cv2 * (1 + cv2) / len(trace)


@fast
@given(base=st.floats(10.0, 500.0), variant=st.floats(100.0, 900.0), cv2=st.sampled_from([2, 4, 8]))
def test_bursty_has_the_sum_of_its_rates(base, variant, cv2):
    trace = bursty(base, variant, cv2, 20.0, seed=1)
    check_count(len(trace), (base + variant) * 20 + (cv2 - 1) / 2, variant * 20 * cv2)


@fast
@given(
    low=st.floats(0.0, 100.0),
    high=st.floats(200.0, 800.0),
    low_s=st.floats(0.05, 0.4),
    high_s=st.floats(0.05, 0.4),
    seed=st.integers(0, 10_000),
)
def test_mmpp_has_its_rate_and_its_known_dispersion(low, high, low_s, high_s, seed):
    duration_s = 200.0
    trace = mmpp(low, high, low_s, high_s, duration_s, seed=seed)
    share = high_s / (low_s + high_s)
    rate = low + share * (high - low)
    parameters = (low, high, low_s, high_s)
    check_count(
        len(trace), rate * duration_s, rate * duration_s * mmpp_dispersion(*parameters, 1e6)
    )
    for window_s in (0.01, 0.1):
        # Neighbouring windows depend on each other: count the independent ones only.
        independent = duration_s / max(window_s, 2 * low_s * high_s / (low_s + high_s))
        found = count_moments(trace, window_s).dispersion
        wanted = mmpp_dispersion(*parameters, window_s)
        assert abs(found - wanted) <= SIGMAS * wanted * (6 / independent) ** 0.5


@pytest.mark.parametrize("cv2", [0.0, 1.0, 4.0])
def test_rates_that_change_change_as_asked(cv2):
    day = diurnal(1000.0, 1.8, 100.0, cv2=cv2, seed=1)
    night, noon = (np.sum((day.arrival_s >= a) & (day.arrival_s < a + 10)) for a in (0.0, 45.0))
    assert noon == pytest.approx(10_000 * (1 + 0.8 * 0.984), rel=0.05)
    assert night == pytest.approx(10_000 * (1 - 0.8 * 0.938), rel=0.2)
    jump = step(100.0, 900.0, 30.0, 60.0, cv2=cv2, seed=1)
    assert np.sum(jump.arrival_s < 30) == pytest.approx(3000, rel=0.15)
    assert np.sum(jump.arrival_s >= 30) == pytest.approx(27_000, rel=0.06)
    crowd = flash(100.0, 2000.0, 20.0, 2.0, 5.0, 60.0, cv2=cv2, seed=1)
    wanted = 6000 + 1900 * (2.0 / 2 + 5.0 * (1 - np.exp(-38 / 5)))
    assert len(crowd) == pytest.approx(wanted, rel=0.06)
    peak = np.sum((crowd.arrival_s >= 22) & (crowd.arrival_s < 22.5))
    assert peak == pytest.approx(950, rel=0.2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mmpp:low=9,high=5,low_s=1,high_s=1,duration=1", "low must be from 0 to high = 5"),
        ("diurnal:rate=9,peak=3,duration=1", "peak is a multiple of the mean rate from 1 to 2"),
        ("step:before=1,after=2,at=9,duration=5", "at 9 s must lie before the end"),
        ("flash:rate=9,peak=3,at=0,rise=1,decay=1,duration=5", "a flash crowd starts inside"),
        (
            "flash:rate=1,peak=3,at=0,rise=0,decay=1,duration=5",
            "rise must be a finite number",
        ),
        ("step:before=1,after=2,at=1,duration=5,cv2=-1", "cv2 must be a finite"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(TraceError, match=message):
        parse_spec(spec)


def test_a_sum_superposes_its_parts_with_seeds_of_their_own():
    one = parse_spec("poisson:rate=100,duration=5", seed=3)
    both = parse_spec("poisson:rate=100,duration=5 + poisson:rate=100,duration=5", seed=3)
    assert set(one.arrival_s) < set(both.arrival_s)
    assert len(np.unique(both.arrival_s)) == len(both)
    assert [part["generator"] for part in both.metadata["merge"]] == ["poisson", "poisson"]


def test_tags_make_tenants_with_deadlines_of_their_own():
    tenants = parse_spec(
        "gamma:rate=1e+1,cv2=0,duration=2,class=0,slo_ms=20"
        "+gamma:rate=5,cv2=0,duration=2,class=1,slo_ms=500"
    )
    assert np.bincount(tenants.query_class).tolist() == [20, 10]
    np.testing.assert_array_equal(tenants.slo_s, np.where(tenants.query_class, 0.5, 0.02))


def test_an_error_in_a_sum_points_into_the_whole_string():
    spec = "poisson:rate=5,duration=1 + poisson:rate=5,speed=1"
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  {spec}"
    assert lines[2].index("^") - 2 == spec.index("speed")


def test_a_file_may_be_part_of_a_sum(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s\n0.5\n1.5\n", encoding="utf-8")
    assert len(parse_spec(f"{path}+gamma:rate=5,cv2=0,duration=2")) == 12


def test_the_cv_of_a_placement_may_come_from_data():
    spec = (
        'azure2019-shape:qps=400,duration=60,placement=gamma,cv2="gamma:rate=90,cv2=4,duration=300"'
    )
    trace = parse_spec(spec, seed=1)
    assert trace.metadata["cv2"] == pytest.approx(4, rel=0.15)
    assert gap_cv2(trace.arrival_s) == pytest.approx(trace.metadata["cv2"], rel=0.15)
