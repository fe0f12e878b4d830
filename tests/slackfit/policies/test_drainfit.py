"""DrainFit: never worse than the smallest subnet, and better than the head-slack policies."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from slackfit.bounds.tiny_instances import tiny_instance
from slackfit.derive import densified, with_overhead
from slackfit.metrics import summarize
from slackfit.policies import create_policy
from slackfit.policies.drainfit import DrainFit
from slackfit.policy import WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.decide import SchedulerView
from slackfit.scheduling.edf import EdfQueue
from slackfit.scheduling.scheduler import Scheduler
from slackfit.scheduling.standing import EQUALS
from slackfit.scheduling.triage import Triage
from slackfit.simulation.simulate import simulate, simulate_queries

SLO_S = 0.036


def arrivals(rate_qps: float, cv2: float, duration_s: float = 2.0, seed: int = 0) -> np.ndarray:
    """Return the paper's bursty traffic: an even base and a gamma stream."""
    base_qps = min(1500.0, rate_qps / 2)
    rng = np.random.default_rng(seed)
    variant_qps = rate_qps - base_qps
    gaps_s = rng.gamma(1 / cv2, cv2 / variant_qps, int(variant_qps * duration_s * 2))
    times_s = np.cumsum(gaps_s)
    base_s = np.arange(0.0, duration_s, 1 / base_qps)
    return np.sort(np.concatenate([base_s, times_s[times_s < duration_s]]))


def served(name: str, profile: LatencyProfile, arrival_s: np.ndarray, **params) -> dict:
    policy = create_policy(name, profile, **params)
    outcomes = simulate(arrival_s, profile, policy, slo_s=SLO_S, num_workers=8)
    return summarize(
        outcomes, policy=name, slo_s=SLO_S, duration_s=float(arrival_s[-1]), seed=0, profile="p"
    )


@pytest.mark.parametrize(
    ("rate_qps", "cv2", "overhead_s", "least_accuracy"),
    [(7050, 8, 0.006, 0.765), (13_000, 8, 0.0, 0.758), (11_000, 8, 0.0, 0.772)],
)
def test_meets_the_deadlines_where_head_slack_policies_collapse(
    resnet, rate_qps, cv2, overhead_s, least_accuracy
):
    profile = with_overhead(densified(resnet, 66), overhead_s)
    arrival_s = arrivals(rate_qps, cv2, duration_s=5.0)
    ours = served("drainfit", profile, arrival_s)
    theirs = served("slackfit", profile, arrival_s, num_buckets=40)
    assert ours["slo_attainment"] >= 0.999
    assert ours["mean_serving_accuracy"] >= least_accuracy
    assert theirs["slo_attainment"] < 0.95


@pytest.mark.parametrize("rate_qps", [1000, 4000, 8000, 12_000, 16_000])
@pytest.mark.parametrize("is_dense", [False, True])
def test_no_utility_is_lost_to_any_other_policy(resnet, rate_qps, is_dense):
    profile = densified(resnet, 66) if is_dense else resnet
    arrival_s = arrivals(rate_qps, 2)
    ours = served("drainfit", profile, arrival_s)
    smallest = served("fixed:smallest", profile, arrival_s)
    if smallest["slo_attainment"] >= 0.999:
        assert ours["slo_attainment"] >= smallest["slo_attainment"] - 0.001
    for name in ("slackfit", "maxbatch", "maxacc", *(f"fixed:{s}" for s in resnet.subnet_ids)):
        assert ours["utility"] >= served(name, profile, arrival_s)["utility"] - 0.001, name


def test_far_beyond_capacity_it_serves_what_the_devices_can(resnet):
    arrival_s = arrivals(30_000, 2, duration_s=1.0)
    report = served("drainfit", resnet, arrival_s)
    capacity_qps = 8 * 16 / resnet.latency_s("resnet-73.82", 16)
    assert report["goodput_qps"] > 0.97 * capacity_qps
    assert report["outcomes"]["late"] == 0
    assert report["mean_serving_accuracy"] < 0.74


def test_without_deadlines_it_keeps_up_with_the_arrivals(resnet):
    scheduler = Scheduler(resnet, DrainFit(resnet), num_workers=2)
    for i in range(40):
        scheduler.submit(Query(i, 0.0, float("inf")), 0.0)
    batch = scheduler.poll(0.0).batch
    assert batch is not None
    assert len(batch.queries) == 16


def test_an_idle_system_serves_a_lone_query_best(resnet):
    arrival_s = np.arange(1, 50) * 1.0
    assert served("drainfit", resnet, arrival_s)["mean_serving_accuracy"] == 0.8016


def crowded(profile: LatencyProfile, classes: list[int]) -> SchedulerView:
    """Return a view with one free worker, a head that needs a small batch, and many behind it."""
    queue = EdfQueue()
    for i, query_class in enumerate(classes):
        deadline_s = 0.003 if i < 4 else 0.036
        queue.push(Query(i, -0.033 if i < 4 else 0.0, deadline_s, query_class=query_class))
    view = SchedulerView(queue, [WorkerView(0, 0.0, None)], profile)
    view.note_arrivals([0.0] * len(classes))
    return view


def test_a_head_that_only_a_small_batch_could_save_is_given_up_under_pressure(resnet):
    view = crowded(resnet, [0] * 200)
    decision = DrainFit(resnet).decide(view, 0.0)
    assert decision is not None
    assert resnet.latency_s(decision.subnet_id, decision.batch_size) <= 0.003
    lost = Triage(resnet, "p50").given_up(view, EQUALS, 0.0)
    assert [query.query_id for query in lost] == [0, 1, 2, 3], "its scheduler asks first"


def test_a_head_of_a_higher_class_is_not_given_up(resnet):
    view = crowded(resnet, [0, 0, 1, *[0] * 197])
    lost = Triage(resnet, "p50").given_up(view, EQUALS, 0.0)
    assert [query.query_id for query in lost] == [0, 1, 3]


def test_the_heads_floor_is_kept_with_a_batch_that_it_affords(resnet):
    queue = EdfQueue()
    for i in range(100):
        queue.push(Query(i, 0.0, 0.02, min_accuracy=0.79))
    view = SchedulerView(queue, [WorkerView(0, 0.0, None)], resnet)
    view.note_arrivals([0.0] * 100)
    decision = DrainFit(resnet).decide(view, 0.0)
    assert decision is not None
    assert resnet.accuracy(decision.subnet_id) >= 0.79
    assert resnet.latency_s(decision.subnet_id, decision.batch_size) <= 0.02


def test_decides_the_same_again_and_remembers_only_through_the_memo(resnet):
    view = crowded(resnet, [0] * 60)
    policy = DrainFit(resnet)
    first = policy.decide(view, 0.0)
    assert policy.decide(view, 0.0) == first == DrainFit(resnet).decide(view, 0.0)


def test_a_decision_in_a_long_queue_is_quick(resnet):
    dense = densified(resnet, 66)
    queue = EdfQueue()
    for i in range(10_000):
        queue.push(Query(i, i * 1e-5, i * 1e-5 + 0.5))
    view = SchedulerView(queue, [WorkerView(i, 0.1 + i * 1e-3, None) for i in range(8)], dense)
    view.note_arrivals([i * 1e-5 for i in range(10_000)])
    view.now_s = 0.1
    policy = DrainFit(dense)
    took_s: list[float] = []
    for _ in range(300):
        begin_s = time.process_time()
        decision = policy.decide(view, 0.1)
        took_s.append(time.process_time() - begin_s)
        assert decision is not None
        view.memo = decision.memo
    assert sorted(took_s)[150] < 100e-6  # about 10e-6 measured


@pytest.mark.parametrize("name", ["reserve", "expect", "lead"])
def test_bad_parameters_are_refused(resnet, name):
    message = f"{name} is -1, allowed a finite number of 0 or more"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        create_policy(f"drainfit@{name}=-1", resnet)


def test_a_burst_with_nothing_behind_it_is_served_better_when_nothing_is_expected(resnet):
    gaps = [
        np.mean([tiny_instance(resnet, seed).utility(name) for seed in range(30)])
        for name in ("drainfit@expect=0.25@lead=0.25@reserve=1", "slackfit", "drainfit")
    ]
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("num_workers", [1, 8])
def test_one_first_query_with_a_loose_slo_changes_nothing(resnet, num_workers):
    arrival_s = 0.05 + arrivals(625.0 * num_workers, 8, duration_s=3.0)

    def attainment(first_slo_s: float) -> float:
        all_s = np.concatenate([[0.0], arrival_s])
        slo_s = np.full(len(all_s), SLO_S)
        slo_s[0] = first_slo_s
        policy = create_policy("drainfit", resnet)
        ended = simulate(all_s, resnet, policy, slo_s=slo_s, num_workers=num_workers)
        return np.mean([outcome.status == "on_time" for outcome in ended])

    assert attainment(20.0) == pytest.approx(attainment(SLO_S), abs=0.001)
    assert attainment(20.0) > 0.995


def test_the_tightest_of_mixed_slos_is_planned_for(resnet):
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(1 / 11_000, 22_000))
    is_tight = rng.random(22_000) < 0.1
    policy = create_policy("drainfit", resnet)
    slo_s = np.where(is_tight, 0.012, 0.5)
    ended = simulate(arrival_s, resnet, policy, slo_s=slo_s, num_workers=8)
    assert (
        np.mean([o.status == "on_time" for o, tight in zip(ended, is_tight, strict=True) if tight])
        > 0.998
    )
    assert (
        np.mean(
            [o.status == "on_time" for o, tight in zip(ended, is_tight, strict=True) if not tight]
        )
        == 1.0
    )


@pytest.mark.parametrize("cv2", [1, 4])
def test_what_pinned_queries_need_is_not_taken_from_the_others(resnet, cv2):
    dense = densified(resnet, 66)
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.gamma(1 / cv2, cv2 / 7000, 14_000)).tolist()
    pins = np.where(rng.random(14_000) < 0.2, "resnet-80.16", "").tolist()
    queries = [
        Query(i, at_s, at_s + SLO_S, subnet_id=pin or None)
        for i, (at_s, pin) in enumerate(zip(arrival_s, pins, strict=True))
    ]
    ended = simulate_queries(queries, Scheduler(dense, DrainFit(dense), num_workers=8))
    pinned, others = (
        [o for o, pin in zip(ended, pins, strict=True) if bool(pin) is wanted]
        for wanted in (True, False)
    )
    assert np.mean([o.status == "on_time" for o in pinned]) > 0.98
    assert np.mean([o.status == "on_time" for o in others]) > 0.995
    assert np.mean([o.accuracy for o in others if o.status == "on_time"]) > 0.780


def test_a_floor_that_is_kept_anyhow_costs_nothing(resnet):
    arrival_s = arrivals(5000, 1)
    floors = np.where(np.arange(len(arrival_s)) % 5 == 0, 0.74, 0.0)
    accuracies = []
    for floor in (0.0, floors):
        policy = create_policy("drainfit", resnet)
        ended = simulate(arrival_s, resnet, policy, slo_s=SLO_S, num_workers=8, min_accuracy=floor)
        assert all(o.status == "on_time" for o in ended)
        accuracies.append(np.mean([o.accuracy for o in ended]))
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.001)
