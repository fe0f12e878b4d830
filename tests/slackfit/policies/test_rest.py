"""Whom a batch leaves waiting: a cut batch must not take the time that they have, too."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from slackfit.policies.drainfit import DrainFit
from slackfit.policies.rest import Rest
from slackfit.policy import WorkerView
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Query
from slackfit.scheduling.decide import SchedulerView
from slackfit.scheduling.edf import EdfQueue
from slackfit.simulation.simulate import simulate

SLO_S = 0.33
# Accuracy and seconds of one query of six subnets; in fp32 three times as slow for 0.3 points.
_SUBNETS = ((0.75, 0.003), (0.763, 0.0055), (0.783, 0.0125), (0.79, 0.017), (0.798, 0.033))
_FP32_FACTOR, _FP32_GAIN = 3.2, 0.003


@pytest.fixture(scope="module")
def both_precisions() -> LatencyProfile:
    """A front of slow subnets in two precisions: its slowest batches take several SLOs."""
    sizes = (1, 2, 4, 8, 16)
    subnets = tuple(
        SubnetProfile(
            subnet_id=f"s{number}{suffix}",
            accuracy=accuracy + gain,
            macs=1,
            latency_s={"p50": tuple(factor * one_s * size**0.97 for size in sizes)},
        )
        for number, (accuracy, one_s) in enumerate(_SUBNETS)
        for suffix, factor, gain in (("-i8", 1.0, 0.0), ("", _FP32_FACTOR, _FP32_GAIN))
    )
    return LatencyProfile(
        name="both", device="none", dtype="none", batch_sizes=sizes, subnets=subnets
    )


def queue_of(deadlines_s: list[float], slo_s: float = SLO_S) -> EdfQueue:
    queue = EdfQueue()
    for i, deadline_s in enumerate(deadlines_s):
        queue.push(Query(i, deadline_s - slo_s, deadline_s))
    return queue


@pytest.mark.parametrize("slo_s", [SLO_S, 0.25])
@pytest.mark.parametrize("rate_qps", [3.0, 11.0, 44.0, 80.0])
def test_clusters_are_met_at_low_load_on_a_front_of_both_precisions(
    both_precisions: LatencyProfile, rate_qps: float, slo_s: float
):
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.gamma(1 / 8, 8 / rate_qps, 4000))
    policy = DrainFit(both_precisions)
    ended = simulate(arrival_s, both_precisions, policy, slo_s=slo_s)
    assert sum(outcome.status != "on_time" for outcome in ended) <= 1
    if rate_qps < 20:  # SlackFit has 0.785 there
        assert np.mean([outcome.accuracy for outcome in ended]) > 0.79


def test_a_batch_leaves_those_due_just_after_its_head_the_time_to_be_served(
    both_precisions: LatencyProfile,
):
    # Half of eight fit an accurate batch that ends with the head's slack; the others are due then.
    queue = queue_of([0.120 + i * 1e-3 for i in range(8)])
    view = SchedulerView(queue, [WorkerView(0, 0.0, None)], both_precisions)
    view.note_arrivals([0.0] * 8)
    decision = DrainFit(both_precisions).decide(view, 0.0)
    assert decision is not None
    left = 8 - decision.batch_size
    took_s = both_precisions.latency_s(decision.subnet_id, decision.batch_size)
    if left:
        took_s += both_precisions.fastest().latency_s[left]
    assert took_s <= 0.120 + decision.batch_size * 1e-3


def test_the_rest_waits_for_the_batch_or_for_another_worker():
    fastest_s = [0.0, 0.010, 0.015, 0.018]
    queue = queue_of([0.1, 0.1, 0.13, 0.13, 0.13])
    alone = Rest(queue, 0.0, inf, fastest_s)
    assert alone.can_wait(2, 0.11), "0.128 is before the three others are due"
    assert not alone.can_wait(2, 0.113)
    assert alone.can_wait(3, 0.114), "two are served sooner"
    assert alone.can_wait(5, 9.9), "nobody is left"
    beside = Rest(queue, 0.0, 0.05, fastest_s)
    assert beside.can_wait(2, 9.9), "the other worker is free at 0.05"
    assert not Rest(queue, 0.04, 0.05, fastest_s).can_wait(1, 9.9), "four are due at 0.108"
