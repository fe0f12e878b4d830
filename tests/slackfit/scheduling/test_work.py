"""Queries that differ in work: each gets the subnet that its own work affords."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.policies.drainfit import DrainFit
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import DeviceModel
from slackfit.simulation.simulate import simulate

SIZES = (1, 2, 4, 8)


def rows(per_query_ms: dict[str, float]) -> dict[str, Any]:
    return {i: {"p50": [0.2 + ms * b for b in SIZES]} for i, ms in per_query_ms.items()}


@pytest.fixture
def profile() -> LatencyProfile:
    """`mlp` reads the node alone, `few` some neighbours, `all` what there is: 1 ms or 100 ms."""
    buckets = [
        {"mlp": 0.05, "few": 0.3, "all": 1.0},
        {"mlp": 0.05, "few": 0.4, "all": 8.0},
        {"mlp": 0.05, "few": 0.5, "all": 100.0},
    ]
    mean = {"mlp": 0.05, "few": 0.31, "all": 3.0}
    accuracy = {"mlp": 0.6, "few": 0.75, "all": 0.8}
    return LatencyProfile.from_json(
        {
            "format": 1,
            "name": "nodes",
            "device": "cpu",
            "dtype": "float32",
            "batch_sizes": list(SIZES),
            "subnets": [
                {"id": i, "accuracy": accuracy[i], "latency_ms": row}
                for i, row in rows(mean).items()
            ],
            "work": {"bounds": [2.0, 16.0], "buckets": [rows(bucket) for bucket in buckets]},
        }
    )


def batch_of(profile: LatencyProfile, policy: str, *works: float, slo_s: float = 0.012) -> Any:
    # DrainFit expects a burst at the start of a run unless it is told that nothing more comes.
    made = create_policy(policy, profile)
    if policy == "drainfit":
        made = DrainFit(profile, expect=0.0, reserve=0.0)
    scheduler = Scheduler(profile, made)
    for i, work in enumerate(works):
        assert scheduler.submit(Query(i, 0.0, slo_s + i * 1e-6, work=work), 0.0) is None
    return scheduler.poll(0.0).batch


@pytest.mark.parametrize("policy", ["slackfit", "drainfit"])
def test_a_leaf_is_read_whole_and_a_hub_is_not(profile: LatencyProfile, policy: str) -> None:
    assert batch_of(profile, policy, 1.0).subnet_id == "all"
    hub = batch_of(profile, policy, 500.0)
    assert hub.subnet_id == "few"
    assert hub.expected_latency_s == pytest.approx(0.0007)


@pytest.mark.parametrize("policy", ["slackfit", "drainfit"])
def test_what_is_too_heavy_waits_for_its_own_turn(profile: LatencyProfile, policy: str) -> None:
    batch = batch_of(profile, policy, 1.0, 500.0, 1.0, 1.0)
    assert batch.subnet_id == "all"
    assert [query.query_id for query in batch.queries] == [0, 2, 3]
    assert batch.expected_latency_s == pytest.approx(0.0032)


def test_a_mixed_batch_takes_the_mean_of_its_rows(profile: LatencyProfile) -> None:
    batch = batch_of(profile, "fixed:few", 3.0, 1.0)
    assert batch.expected_latency_s == pytest.approx(0.2e-3 + 0.4e-3 + 0.3e-3)
    # Eight like the head take 2.6 ms: beside it four of 0.5 ms have room, and not a fifth.
    batch = batch_of(profile, "fixed:few", 1.0, *[500.0] * 7)
    assert [query.query_id for query in batch.queries] == [0, 1, 2, 3, 4]
    assert batch.expected_latency_s == pytest.approx(0.2e-3 + 0.3e-3 + 4 * 0.5e-3)


def test_constraints_and_work_are_both_kept(profile: LatencyProfile) -> None:
    scheduler = Scheduler(profile, create_policy("slackfit", profile))
    queries = [
        Query(0, 0.0, 0.012, work=1.0),
        Query(1, 0.0, 0.013, work=500.0, min_accuracy=0.78),
        Query(2, 0.0, 0.014, work=1.0, min_accuracy=0.78),
    ]
    for query in queries:
        scheduler.submit(query, 0.0)
    batch = scheduler.poll(0.0).batch
    assert batch is not None
    assert [query.query_id for query in batch.queries] == [0, 2]


def test_hopelessness_is_judged_by_the_querys_own_work(profile: LatencyProfile) -> None:
    only = profile.select(["all"])
    scheduler = Scheduler(only, create_policy("fixed:all", only), drop_hopeless=True)
    refused = scheduler.submit(Query(0, 0.0, 0.05, work=500.0), 0.0)
    assert refused is not None
    assert refused.reason == "infeasible"
    assert scheduler.submit(Query(1, 0.0, 0.05, work=1.0), 0.0) is None


def test_work_keeps_promises_that_one_latency_per_subnet_breaks(profile: LatencyProfile) -> None:
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / 300, 6000))
    works = np.where(rng.random(6000) < 0.02, 500.0, np.where(rng.random(6000) < 0.1, 4.0, 1.0))
    blind = replace(profile, work=None)
    devices = DeviceModel(profiles=[profile])
    missed: dict[str, float] = {}
    for name, known in (("blind", blind), ("aware", profile)):
        policy = create_policy("slackfit", known)
        outcomes = simulate(arrivals, known, policy, slo_s=0.02, work=works, devices=devices)
        missed[name] = sum(o.status != "on_time" for o in outcomes) / len(outcomes)
    assert missed["blind"] > 0.1
    assert missed["aware"] < missed["blind"] / 5


def test_queries_without_work_are_as_before(profile: LatencyProfile) -> None:
    plain = replace(profile, work=None)
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / 800, 3000))
    for name in ("slackfit", "drainfit"):
        runs = [
            simulate(arrivals, plain, create_policy(name, plain), slo_s=0.02, work=work)
            for work in (1.0, rng.random(3000) * 100)
        ]
        assert runs[0] == runs[1]


def test_a_heavy_batch_does_not_teach_that_the_device_is_slow(profile: LatencyProfile) -> None:
    scheduler = Scheduler(profile, create_policy("fixed:all", profile), correct_latency=True)
    for i in range(200):
        scheduler.submit(Query(i, float(i), i + 0.5, work=500.0), float(i))
        batch = scheduler.poll(float(i)).batch
        assert batch is not None
        scheduler.complete(batch.batch_id, i + 0.1002)
    assert scheduler.latency_factor == pytest.approx(1.0, abs=0.11)
