"""Runs of one trace compared bin by bin: covers the truth, and sees what single intervals miss."""

from __future__ import annotations

import numpy as np
import pytest

from traces.report.intervals import attainment_intervals, widest
from traces.report.page_tables import comparison
from traces.report.paired import paired_differences

BINS = 120
TRACE = {"source": "t", "num_queries": BINS * 100}


def run(on_time: np.ndarray, accuracy: float | np.ndarray = 0.9, trace: dict = TRACE) -> dict:
    arrived = np.full(BINS, 100)
    means = np.broadcast_to(accuracy, BINS)
    served = (means * on_time).sum()
    hits = int(on_time.sum())
    attainment, mean = hits / arrived.sum(), served / max(hits, 1)
    return {
        "policy": "p",
        "trace": trace,
        "slo_attainment": attainment,
        "mean_serving_accuracy": mean,
        "utility": attainment * mean,
        "num_queries": int(arrived.sum()),
        "outcomes": {"on_time": hits},
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "series": {
            "bin_s": 1.0,
            "t_s": list(range(BINS)),
            "arrived": arrived.tolist(),
            "on_time": on_time.tolist(),
            "accuracy": [float(a) if n else None for a, n in zip(means, on_time, strict=True)],
        },
    }


def bursts(rng: np.random.Generator) -> np.ndarray:
    """Chances of being on time, shared by both runs: long bad stretches among good ones."""
    level = np.repeat(rng.choice([0.5, 0.97], BINS // 6, p=[0.3, 0.7]), 6)
    return np.clip(level, 0, 1)


def test_a_small_but_steady_gain_is_seen_where_single_intervals_touch():
    chances = bursts(np.random.default_rng(1))
    first = run((100 * chances).round().astype(int))
    second = run((100 * chances).round().astype(int) + 2)
    ends = [widest(attainment_intervals(r)) for r in (first, second)]
    assert ends[0][1] > ends[1][0], "the two intervals overlap"
    found = paired_differences(first, second)
    assert found["slo_attainment"].value == pytest.approx(0.02)
    assert found["slo_attainment"].low > 0
    assert found["utility"].is_beyond_chance
    assert not found["mean_serving_accuracy"].is_beyond_chance
    row = comparison([first, second], ["a", "b"], ends)[0]
    assert row["verdict"] == "attainment, utility"
    assert row["attainment_95"] == "+2.00 to +2.00"


def test_equal_runs_differ_by_nothing():
    first = run((100 * bursts(np.random.default_rng(2))).round().astype(int))
    for difference in paired_differences(first, first).values():
        assert difference == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_difference_of_accuracy():
    chances = bursts(np.random.default_rng(3))
    hits = (100 * chances).round().astype(int)
    found = paired_differences(run(hits, 0.9), run(hits, 0.9 + 0.01 * (chances > 0.9)))
    accuracy = found["mean_serving_accuracy"]
    assert 0 < accuracy.low <= accuracy.value <= accuracy.high < 0.01


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_it_covers_the_truth_about_as_often_as_it_says(gain):
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chances = bursts(rng)
        first = run(rng.binomial(100, chances))
        second = run(rng.binomial(100, np.clip(chances * (1 + gain), 0, 1)))
        truth = float(np.mean(np.clip(chances * (1 + gain), 0, 1) - chances))
        found = paired_differences(first, second)["slo_attainment"]
        covered += found.low <= truth <= found.high
    assert covered >= 0.85 * 200


def test_runs_of_other_traffic_are_not_paired():
    hits = np.full(BINS, 90)
    first, other = run(hits), run(hits, trace={"source": "u"})
    assert paired_differences(first, other) is None
    row = comparison([first, other], ["a", "b"], [(0.8, 0.9), (0.85, 0.95)])[0]
    assert row["verdict"] == "nothing (other traffic)"
    invalid = {**first, "invalid_reason": "sent late"}
    row = comparison([first, invalid], ["a", "b"], [(0.8, 0.9), (0.85, 0.95)])[0]
    assert row["verdict"] == "nothing: a run is invalid"
