"""The bound is above the optimum, the optimum above every policy, and both are what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from slackfit.bounds.bound import utility_bound
from slackfit.bounds.optimum import TinyQuery, optimal_utility
from slackfit.bounds.tiny_instances import NUM_WORKERS, TinyInstance, tiny_instance
from slackfit.policies import create_policy, policy_names
from slackfit.profile import LatencyProfile
from slackfit.simulation.simulate import simulate

# Two subnets: a batch of 1 or 2 takes 2 or 3 ticks on the small one, 4 or 6 on the large one.
LATENCY = ([0, 2, 3], [0, 4, 6])
ACCURACY = (0.5, 0.9)
POLICIES = [name for name in policy_names() if "<" not in name]


def bound(instance: TinyInstance) -> float:
    arrivals = np.array([float(q.arrival) for q in instance.queries])
    slos = np.array([float(q.deadline - q.arrival) for q in instance.queries])
    return utility_bound(arrivals, instance.profile, slo_s=slos, num_workers=NUM_WORKERS)


@pytest.mark.parametrize(
    ("queries", "num_workers", "expected"),
    [
        ([(0, 3)], 1, 0.5),
        ([(0, 4)], 1, 0.9),
        ([(0, 1)], 1, 0.0),
        ([(0, 6), (0, 6)], 1, 0.9),  # one batch on the large subnet
        ([(0, 5), (0, 5)], 1, 0.5),  # 6 ticks are too long: one batch on the small one
        ([(0, 5), (0, 5)], 2, 0.9),
        ([(0, 4), (1, 5)], 1, 0.5),  # wait until 1, then both on the small one
        ([(0, 4), (2, 6)], 1, 0.7),  # small until 2, then large
        ([(0, 2), (0, 2), (0, 2)], 1, 0.5 / 3),  # a batch of 2 takes 3 ticks: one is served
        ([(0, 6), (2, 6)], 1, 0.7),  # large until 4, then small
        ([(0, 8), (2, 8)], 1, 0.9),  # both wait for the second: 2 + 6
    ],
)
def test_the_optimum_of_small_cases_worked_out_by_hand(queries, num_workers, expected):
    tiny = [TinyQuery(*q) for q in queries]
    found = optimal_utility(tiny, LATENCY, ACCURACY, num_workers=num_workers)
    assert found == pytest.approx(expected)


def test_the_optimum_of_nothing_is_0():
    assert optimal_utility([], LATENCY, ACCURACY) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_bound_optimum_and_policies_come_in_this_order(resnet: LatencyProfile, seed: int):
    instance = tiny_instance(resnet, seed, num_queries=7)
    optimum = instance.optimum()
    assert bound(instance) >= optimum - 1e-9
    for name in POLICIES:
        assert instance.utility(name) <= optimum + 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_same_order_on_instances_of_full_size(resnet: LatencyProfile, seed: int):
    instance = tiny_instance(resnet, seed)
    optimum = instance.optimum()
    assert bound(instance) >= optimum - 1e-9
    assert all(instance.utility(name) <= optimum + 1e-9 for name in POLICIES)


@pytest.mark.parametrize("rate_qps", [2000.0, 9000.0, 16_000.0, 40_000.0])
def test_no_policy_is_above_the_bound_on_a_trace(resnet: LatencyProfile, rate_qps: float):
    rng = np.random.default_rng(int(rate_qps))
    arrival_s = np.cumsum(rng.gamma(0.25, 4 / rate_qps, 4000))
    limit = utility_bound(arrival_s, resnet, slo_s=0.036, num_workers=8)
    for name in ("drainfit", "slackfit", "maxacc", "fixed:smallest", "fixed:largest"):
        policy = create_policy(name, resnet)
        outcomes = simulate(arrival_s, resnet, policy, slo_s=0.036, num_workers=8)
        utility = sum(o.accuracy for o in outcomes if o.status == "on_time") / len(outcomes)
        assert utility <= limit + 1e-9, name


def test_the_bound_knows_capacity_accuracy_and_deadlines(resnet: LatencyProfile):
    sparse = np.arange(100) * 1.0
    assert utility_bound(sparse, resnet, slo_s=0.036) == pytest.approx(0.8016)
    assert utility_bound(sparse, resnet, slo_s=0.0046) == pytest.approx(0.7944)  # 4.64 ms is late
    assert utility_bound(sparse, resnet, slo_s=0.001) == 0.0
    flood = np.linspace(0.0, 1.0, 100_000)
    capacity_qps = 8 * 16 / 0.00735
    expected = 0.7382 * capacity_qps / 100_000
    found = utility_bound(flood, resnet, slo_s=0.036, num_workers=8)
    assert expected < found < 1.06 * expected


def test_pieces_of_a_trace_bound_it_no_lower(resnet: LatencyProfile):
    arrival_s = np.cumsum(np.random.default_rng(1).gamma(0.5, 2 / 12_000, 6000))
    coarse, fine = (
        utility_bound(arrival_s, resnet, slo_s=0.036, num_workers=8, bin_s=b)
        for b in (0.012, 0.002)
    )
    assert coarse >= fine - 1e-9
    assert coarse - fine < 0.02


def test_a_lone_query_cannot_be_served_as_part_of_a_batch(resnet: LatencyProfile):
    slow = resnet.select(["resnet-80.16"])
    arrival_s = np.arange(1000) / 3000  # 3,000 queries/s on one device that does 521 in batches
    batched = utility_bound(arrival_s, slow, slo_s=0.040)
    alone = utility_bound(arrival_s, slow, slo_s=0.0047)  # no two arrive within 4.7 - 6.11 ms
    assert batched == pytest.approx(0.8016 * (1 / 3 + 0.040) / 0.0307 * 16 / 1000, rel=0.02)
    assert alone == pytest.approx(0.8016 * (1 / 3 + 0.0047) / 0.00464 / 1000, rel=0.02)


@pytest.mark.parametrize(
    ("arrival_s", "options", "message"),
    [
        ([1.0, 0.0], {"slo_s": 1.0}, "arrival_s must be sorted"),
        ([1.0], {"slo_s": 0.0}, "slo_s and bin_s must be above 0, got slo_s 0.0 and bin_s None"),
    ],
)
def test_bad_arguments_are_refused(resnet, arrival_s, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        utility_bound(np.array(arrival_s), resnet, **options)


def test_no_arrivals_have_nothing_to_gain(resnet):
    assert utility_bound(np.array([]), resnet, slo_s=1.0) == 0.0
