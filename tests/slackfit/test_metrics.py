"""The report against outcomes small enough to count by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.policies import create_policy
from slackfit.query import STATUSES, Outcome
from slackfit.simulation.simulate import simulate


def ended(query_id, status, arrival_s, finish_s, *, start_s=None, subnet_id=None, **fields):
    defaults = {"reason": "", "deadline_s": 9.0, "accuracy": 0.0, "batch_size": 0}
    return Outcome(
        query_id=query_id,
        status=status,
        arrival_s=arrival_s,
        start_s=start_s,
        finish_s=finish_s,
        subnet_id=subnet_id,
        **{**defaults, **fields},
    )


def ran(query_id, status, arrival_s, finish_s, start_s, subnet_id, accuracy, size, worker_id=0):
    fields = {"accuracy": accuracy, "batch_size": size, "worker_id": worker_id}
    return ended(
        query_id, status, arrival_s, finish_s, start_s=start_s, subnet_id=subnet_id, **fields
    )


# Bins of 1 s: [0, 1) has queries 0 to 3, [1, 2) has none, [2, 3) has 4, [3, 4] has 5 and 6.
OUTCOMES = [
    ran(0, "on_time", 0.0, 0.5, 0.25, "b", 0.75, 2),
    ran(1, "on_time", 0.125, 0.5, 0.25, "b", 0.75, 2),
    ran(2, "late", 0.5, 2.5, 2.25, "a", 0.5, 1),
    ended(3, "rejected", 0.75, 0.75, reason="queue_full"),
    ran(4, "on_time", 2.0, 2.5, 2.25, "a", 0.5, 1, worker_id=1),
    ended(5, "dropped", 3.0, 3.5, reason="expired"),
    ran(6, "failed", 4.0, 4.25, 4.125, "b", 0.0, 1)._replace(reason="device lost"),
]


def report(outcomes=OUTCOMES, **changes):
    arguments = {
        "policy": "slackfit",
        "slo_s": 0.25,
        "duration_s": 4.0,
        "seed": 3,
        "profile": "duo",
        "bin_s": 1.0,
    }
    return summarize(outcomes, **{**arguments, **changes})


def test_attainment_is_over_all_arrived_and_accuracy_over_the_on_time():
    summary = report()
    assert summary["slo_attainment"] == 3 / 7
    assert summary["mean_serving_accuracy"] == pytest.approx((0.75 + 0.75 + 0.5) / 3)
    assert summary["utility"] == summary["slo_attainment"] * summary["mean_serving_accuracy"]
    assert summary["goodput_qps"] == 3 / 4
    assert summary["num_queries"] == 7


def test_outcomes_and_reasons_are_counted():
    summary = report()
    assert summary["outcomes"] == {
        "on_time": 3,
        "late": 1,
        "dropped": 1,
        "rejected": 1,
        "failed": 1,
    }
    assert summary["reasons"] == {"device lost": 1, "expired": 1, "queue_full": 1}


def test_latency_is_that_of_the_executed_queries():
    summary = report()
    assert summary["latency_ms"]["max"] == 2000.0
    assert summary["latency_ms"]["p50"] == 500.0
    assert summary["latency_cdf"] == {
        "ms": [375.0, 500.0, 500.0, 2000.0],
        "fraction": [0.25, 0.5, 0.75, 1.0],
    }


def test_batches_are_told_apart_by_worker_start_and_subnet():
    summary = report()
    assert summary["subnets"] == {
        "a": {"queries": 2, "batches": 2, "accuracy": 0.5},
        "b": {"queries": 2, "batches": 1, "accuracy": 0.75},
    }
    assert summary["batch_sizes"] == {"1": 2, "2": 1}


def test_series_follow_the_bins_of_arrival():
    assert report()["series"] == {
        "bin_s": 1.0,
        "t_s": [0.0, 1.0, 2.0, 3.0],
        "arrived": [4, 0, 1, 2],
        "on_time": [2, 0, 1, 0],
        "attainment": [0.5, None, 1.0, 0.0],
        "accuracy": [0.75, None, 0.5, None],
        "queue_depth": [1, 1, 0, 0],  # just before 1, 2, 3, 4 s: query 2 waits until 2.25 s
        "subnets": {"a": [1, 0, 1, 0], "b": [2, 0, 0, 0]},
    }


def test_keys_keep_their_order_and_the_rest_is_added_at_the_end():
    summary = report(wall_s=1.5, command="simulate", trace={"source": "x"})
    assert list(summary) == [
        "policy",
        "slo_attainment",
        "mean_serving_accuracy",
        "utility",
        "goodput_qps",
        "num_queries",
        "outcomes",
        "latency_ms",
        "subnets",
        "seed",
        "profile",
        "wall_s",
        "slo_ms",
        "duration_s",
        "reasons",
        "batch_sizes",
        "series",
        "latency_cdf",
        "command",
        "trace",
    ]
    assert (summary["wall_s"], summary["slo_ms"], summary["seed"]) == (1.5, 250.0, 3)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_nothing_arrived_is_reported_without_numbers_that_are_not():
    summary = report([])
    assert (summary["num_queries"], summary["slo_attainment"]) == (0, 0.0)
    assert summary["latency_ms"] == {"p50": None, "p90": None, "p99": None, "max": None}
    assert summary["latency_cdf"] == {"ms": [], "fraction": []}
    assert json.dumps(summary, allow_nan=False)


def test_nothing_executed_has_accuracy_zero():
    summary = report(OUTCOMES[3:4])
    assert (summary["mean_serving_accuracy"], summary["subnets"]) == (0.0, {})


def test_accuracy_of_one_subnet_is_its_accuracy_to_the_last_bit(resnet):
    arrival_s = np.arange(5000) * 2e-4
    for place, accuracy in (("smallest", 0.7382), ("largest", 0.8016)):
        policy = create_policy(f"fixed:{place}", resnet)
        outcomes = simulate(arrival_s, resnet, policy, slo_s=1.0, num_workers=8)
        summary = summarize(
            outcomes, policy=policy.name, slo_s=1.0, duration_s=1.0, seed=0, profile="resnet"
        )
        assert summary["mean_serving_accuracy"] == accuracy
        assert sum(summary["outcomes"].values()) == summary["num_queries"] == 5000
        assert sum(summary["series"]["arrived"]) == 5000
        sizes = {int(size): count for size, count in summary["batch_sizes"].items()}
        assert sum(size * count for size, count in sizes.items()) == 5000
        assert summary["series"]["queue_depth"][-1] >= 0


def test_the_latency_curve_has_at_most_200_points_and_ends_at_one():
    outcomes = [ran(i, "on_time", 0.0, 0.001 * i, 0.0, "a", 0.5, 1) for i in range(1000)]
    curve = report(outcomes)["latency_cdf"]
    assert len(curve["ms"]) == len(curve["fraction"]) == 200
    assert (curve["ms"][0], curve["fraction"][-1]) == (0.0, 1.0)
    assert curve["ms"] == sorted(curve["ms"])


@pytest.mark.parametrize("duration_s", [0.01, 0.7, 1.0, 60.0, 119.9, 121.0, 86_400.0])
def test_bins_are_round_and_at_most_120(duration_s):
    series = report([], duration_s=duration_s, bin_s=None)["series"]
    assert 24 <= len(series["t_s"]) <= 120


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration_s": 0.0}, "duration_s is 0.0, allowed more than 0"),
        ({"bin_s": -1.0}, "bin_s is -1.0, allowed more than 0"),
        (
            {"series": 1, "trace": 2},
            "extra keys series are the report's own; rename them",
        ),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report(**changes)


def test_statuses_are_those_of_the_report():
    assert tuple(report()["outcomes"]) == STATUSES
