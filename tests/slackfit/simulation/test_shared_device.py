"""Several models on one device: what each plans for, in virtual time."""

from __future__ import annotations

import io
from itertools import chain

import numpy as np
import pytest

from slackfit.derive import densified
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.record import RecordingScheduler, replay_log
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.shared_device import SharedDevice, SharedModel
from slackfit.simulation.simulate import simulate_queries

CAPACITY_QPS = 2177.0  # of one device of the published profile
SLO_S = 0.036


@pytest.fixture(scope="module")
def dense(resnet: LatencyProfile) -> LatencyProfile:
    return densified(resnet, 66)


def poisson(rate_qps: float, seed: int, slo_s: float = SLO_S, duration_s: float = 4.0):
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate_qps, int(rate_qps * duration_s))).tolist()
    return [Query(i, at_s, at_s + slo_s) for i, at_s in enumerate(arrival_s)]


def scheduler(profile: LatencyProfile, policy: str = "drainfit", **more) -> Scheduler:
    chosen = create_policy(policy, profile)
    return Scheduler(profile, chosen, drop_hopeless=True, triage=True, **more)


def attainment(outcomes: list[Outcome]) -> float:
    return float(np.mean([outcome.status == "on_time" for outcome in outcomes]))


def accuracy(outcomes: list[Outcome]) -> float:
    return float(np.mean([o.accuracy for o in outcomes if o.status == "on_time"]))


def served(profile: LatencyProfile, rates_qps: list[float], policy: str = "drainfit"):
    models = [
        SharedModel(scheduler(profile, policy), poisson(rate_qps, seed))
        for seed, rate_qps in enumerate(rates_qps)
    ]
    return SharedDevice(models).run()


@pytest.mark.parametrize("load", [0.23, 0.6])
@pytest.mark.parametrize("num_models", [2, 4])
def test_models_on_one_device_keep_their_deadlines(dense, num_models, load):
    rates_qps = [load * CAPACITY_QPS / num_models] * num_models
    ours = list(chain.from_iterable(served(dense, rates_qps)))
    theirs = list(chain.from_iterable(served(dense, rates_qps, "slackfit")))
    assert attainment(ours) > 0.995
    assert accuracy(ours) > accuracy(theirs) - 0.003


def test_a_light_model_leaves_the_device_to_a_heavy_one(dense):
    heavy, light = served(dense, [1000.0, 50.0])
    alone = simulate_queries(poisson(1000.0, 0), scheduler(dense))
    assert attainment(heavy) > 0.995
    assert attainment(light) > 0.995
    assert accuracy(heavy) > accuracy(alone) - 0.01


def test_an_overloaded_model_leaves_another_its_part(dense):
    flooded, modest = served(dense, [4000.0, 200.0])
    assert attainment(flooded) > 0.4
    assert attainment(modest) > 0.99


def test_one_model_is_served_as_if_it_were_not_shared(dense):
    queries = poisson(900.0, 0)
    (shared,) = SharedDevice([SharedModel(scheduler(dense), queries)]).run()
    alone = simulate_queries(queries, scheduler(dense))
    assert sorted(shared) == alone


def test_a_recorded_model_of_several_replays_to_the_same_decisions(dense):
    log = io.StringIO()
    policy = create_policy("drainfit", dense)
    recorder = RecordingScheduler(dense, policy, sink=log, drop_hopeless=True, triage=True)
    models = [
        SharedModel(recorder, poisson(300.0, 0)),
        SharedModel(scheduler(dense), poisson(300.0, 1)),
    ]
    first = SharedDevice(models).run()
    lines = log.getvalue().splitlines()
    assert replay_log(lines, scheduler(dense)) == len(lines) - 1
    again = SharedDevice([m._replace(scheduler=scheduler(dense)) for m in models]).run()
    assert again == first
    assert any(line.count("[") > 2 and '"poll"' in line for line in lines), "others are written"
