from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from traces.report.intervals import (
    attainment_intervals,
    binomial_interval,
    bootstrap_interval,
    widest,
)


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_binomial_interval_is_wilsons(total, share):
    hits = round(share * total)
    exact = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert binomial_interval(hits, total) == pytest.approx((exact.low, exact.high), abs=1e-7)


def test_an_interval_holds_its_own_share_to_the_last_bit():
    """Of 10 out of 10 and others, rounding ended it below 1: no error bar has a length below 0."""
    for total in range(1, 200):
        assert binomial_interval(total, total)[1] == 1.0
        assert binomial_interval(0, total)[0] == 0.0


def markov_bins(rng: np.random.Generator, num_bins: int) -> np.ndarray:
    """Hits of 50 queries per bin: good bins (all on time) and bad ones (half), in long runs."""
    state, hits = 0, []
    for _ in range(num_bins):
        state = state if rng.random() < 0.8 else 1 - state
        hits.append(50 if state == 0 else int(rng.binomial(50, 0.5)))
    return np.array(hits)


def test_the_block_bootstrap_covers_where_bursts_fool_the_binomial_interval():
    rng = np.random.default_rng(0)
    truth = 0.75  # both states are equally likely
    covered = {"bootstrap": 0, "binomial": 0}
    for seed in range(100):
        hits = markov_bins(rng, 120)
        low, high = bootstrap_interval(hits.tolist(), [50] * 120, seed=seed)
        covered["bootstrap"] += low <= truth <= high
        low, high = binomial_interval(int(hits.sum()), 50 * 120)
        covered["binomial"] += low <= truth <= high
    assert covered["bootstrap"] >= 80
    assert covered["binomial"] <= 50


def test_the_same_series_has_the_same_interval_and_few_bins_have_none():
    hits = [3, 2, 3, 1] * 5
    assert bootstrap_interval(hits, [3] * 20) == bootstrap_interval(hits, [3] * 20)
    assert bootstrap_interval([1] * 9, [1] * 9) is None
    assert bootstrap_interval([0] * 20, [0] * 20) is None


def test_a_report_gets_both_and_the_wider_is_shown(make_report):
    intervals = attainment_intervals(make_report())
    assert set(intervals) == {"binomial", "block_bootstrap"}
    for low, high in intervals.values():
        assert low < 0.66 < high
    assert widest({"a": [0.1, 0.3], "b": [0.0, 0.3]}) == (0.0, 0.3)
