"""Rates and squared CVs lie within four standard errors of what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from traces.burstiness import describe
from traces.generators.arrivals import bursty, gamma, poisson, ramp
from traces.trace import TraceError


def cv2_of(arrival_s: np.ndarray) -> float:
    gaps = np.diff(arrival_s)
    return float(gaps.var() / gaps.mean() ** 2)


@pytest.mark.parametrize("cv2", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("rate", [50.0, 2000.0])
def test_gamma_has_the_rate_and_variability_asked_for(rate, cv2):
    expected = 100_000
    trace = gamma(rate, cv2, expected / rate, seed=7)
    assert abs(len(trace) - expected) < 4 * (cv2 * expected) ** 0.5
    # Of n gamma gaps: Var(sample CV2)/CV2^2 is below (2 + 10 CV2)/n.
    assert abs(cv2_of(trace.arrival_s) / cv2 - 1) < 4 * ((2 + 10 * cv2) / expected) ** 0.5


@pytest.mark.parametrize("cv2", [0.25, 4.0, 16.0])
def test_renewals_start_in_equilibrium(cv2):
    """The expected count of any stretch is rate x length, and nothing heaps up at the start."""
    runs = [gamma(1.0, cv2, 40.0, seed=seed).arrival_s for seed in range(4000)]
    for start_s, end_s in ((0.0, 1.0), (0.0, 10.0), (0.0, 40.0)):
        counts = np.array([np.sum((run >= start_s) & (run < end_s)) for run in runs])
        error = counts.std() / len(runs) ** 0.5
        assert abs(counts.mean() - (end_s - start_s)) < 4 * error, (start_s, end_s)


def test_poisson_has_the_rate_asked_for_and_dispersion_one():
    trace = poisson(1000.0, 100.0, seed=3)
    assert abs(len(trace) - 100_000) < 4 * 100_000**0.5
    assert cv2_of(trace.arrival_s) == pytest.approx(1.0, abs=0.02)
    assert describe(trace)["index_of_dispersion"]["0.1"] == pytest.approx(1.0, abs=0.2)


def test_bursty_is_an_even_base_plus_a_gamma_stream():
    trace = bursty(150.0, 500.0, 8.0, 100.0, seed=5)
    base = np.arange(15_000) / 150.0
    variant = np.setdiff1d(trace.arrival_s, base)
    assert np.isin(base, trace.arrival_s).all()
    assert abs(variant.size - 50_000) < 4 * (8 * 50_000) ** 0.5
    assert cv2_of(variant) == pytest.approx(8.0, rel=4 * (82 / 50_000) ** 0.5)


def test_ramp_follows_the_integral_of_its_rate():
    trace = ramp(250.0, 750.0, 25.0, 8.0, 40.0, seed=2)
    for at_s in (5.0, 10.0, 20.0, 40.0):
        rise_s = min(at_s, 20.0)
        expected = 250 * rise_s + 25 / 2 * rise_s**2 + 750 * (at_s - rise_s)
        got = np.searchsorted(trace.arrival_s, at_s)
        assert abs(got - expected) < 4 * (8 * expected) ** 0.5, at_s


def test_even_ramp_down_counts_exactly():
    trace = ramp(100.0, 50.0, 10.0, 0.0, 10.0)
    assert abs(np.searchsorted(trace.arrival_s, 5.0) - 375) <= 1
    assert abs(len(trace) - 625) <= 1


def test_ramp_that_does_not_reach_its_end_is_refused():
    with pytest.raises(TraceError, match="takes 9 s, longer than duration 2 s"):
        ramp(1.0, 10.0, 1.0, 1.0, 2.0)


def test_the_seed_decides_the_trace_and_metadata_says_synthetic():
    first, again, other = (poisson(50.0, 10.0, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.arrival_s, again.arrival_s)
    assert not np.array_equal(first.arrival_s, other.arrival_s)
    assert first.metadata == {
        "synthetic": True,
        "generator": "poisson",
        "generator_version": 2,
        "rate_qps": 50.0,
        "duration_s": 10.0,
        "seed": 1,
    }


@pytest.mark.parametrize("bad", [{"rate_qps": 0.0}, {"cv2": -1.0}, {"duration_s": float("inf")}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(TraceError, match="must be a finite number"):
        gamma(**{"rate_qps": 1.0, "cv2": 1.0, "duration_s": 1.0, **bad})


def test_bursts_larger_than_memory_are_refused(monkeypatch):
    """The mean count fits; the gaps that are drawn to reach the end do not."""
    monkeypatch.setattr("traces.memory.free_bytes", lambda: float(2**30))

    def drawn():  # of most seeds nothing at all arrives
        return [len(gamma(1e5, 1e8, 100.0, seed=seed)) for seed in range(12)]

    with pytest.raises(TraceError, match="bursts as large as gaps of cv2=1e.08 make would take"):
        drawn()
