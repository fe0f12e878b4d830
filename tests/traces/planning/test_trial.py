"""Trials: routing, groups and floors against the Python simulator, and one draw for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slackfit.outcome_columns import OutcomeColumns
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.replicas import simulate_replicas
from slackfit.simulation.routing import parse_routing
from slackfit.simulation.simulate import simulate
from traces.planning.candidates import FleetCandidate
from traces.planning.catalog import DeviceOffer
from traces.planning.certificate import certify
from traces.planning.possible import impossible_part
from traces.planning.promise import PartPromise, Promise, parse_promise
from traces.planning.redrawn import RESAMPLES, common_draw, redrawn_sums
from traces.planning.search import FleetSearch, Task
from traces.planning.traffic import Traffic, traffic_of
from traces.planning.trial import run_trial
from traces.spec.spec import parse_spec
from traces.trace import Trace, TraceError

GOLD = "gamma:rate=1500,cv2=4,duration=4,tenant=gold + gamma:rate=4500,cv2=4,duration=4,tenant=tin"


@pytest.fixture(scope="module")
def resnet() -> LatencyProfile:
    return LatencyProfile.load(Path("profiles/superserve_resnet_2080ti.json"))


def candidate(profile: LatencyProfile, routing: str = "one-queue") -> FleetCandidate:
    offer = DeviceOffer(name="d", profile=profile)
    return FleetCandidate(
        offer, "drainfit", profile.subnet_ids, profile.max_batch_size, parse_routing(routing)
    )


@pytest.mark.parametrize("routing", ["round-robin", "power-of-two", "client:2"])
def test_a_routed_trial_is_the_simulation_of_replicas(routing: str, resnet: LatencyProfile):
    arrival_s = np.cumsum(np.random.default_rng(3).gamma(0.25, 4 / 9000, 4000))
    classes = np.random.default_rng(4).integers(0, 2, len(arrival_s))
    traffic = Traffic(arrival_s, float(arrival_s[-1]) + 1e-9, 0.03, classes)
    trial = run_trial(candidate(resnet, routing), 3, traffic)
    outcomes = OutcomeColumns.of(
        simulate_replicas(
            arrival_s, resnet, create_policy("drainfit", resnet), parse_routing(routing),
            slo_s=0.03, num_replicas=3, query_class=classes,
        )
    )  # fmt: skip
    assert trial.attainment == outcomes.attainment
    assert 0.5 < trial.attainment < 1.0
    assert trial.accuracy == pytest.approx(outcomes.mean_accuracy)
    assert bool(trial.why_python) == (routing != "round-robin")


def test_groups_are_counted_apart_and_floors_are_kept(resnet: LatencyProfile):
    trace = parse_spec(GOLD, seed=1)
    promise = parse_promise("attainment>=0.9,gold:attainment>=0.99,gold:floor>=0.78")
    assert promise.parts == (PartPromise("gold", 0.99, 0.0, 0.78),)
    traffic = traffic_of(trace, 0.036, promise)
    gold = traffic.groups["gold"]
    assert gold.sum() == sum(name == "gold" for name in trace.tenant.tolist())
    trial = run_trial(candidate(resnet), 4, traffic)
    outcomes = simulate(
        trace.arrival_s, resnet, create_policy("drainfit", resnet), slo_s=0.036, num_workers=4,
        min_accuracy=traffic.min_accuracy,
    )  # fmt: skip
    on_time = [
        o for o, is_gold in zip(outcomes, gold, strict=True) if is_gold and o.status == "on_time"
    ]
    assert trial.groups["gold"].on_time.sum() == len(on_time)
    assert min(o.accuracy for o in on_time) >= 0.78
    assert trial.groups["gold"].accuracy == pytest.approx(np.mean([o.accuracy for o in on_time]))
    assert trial.all.arrived.sum() == len(trace)
    assert trial.keeps(promise) == (
        trial.attainment >= 0.9 and trial.groups["gold"].attainment >= 0.99
    )
    assert not trial.keeps(Promise(0.1, parts=(PartPromise("gold", accuracy=0.99),)))
    assert trial.share_kept(Promise(0.1, parts=(PartPromise("gold", accuracy=0.99),))) == 0.0


def test_a_groups_own_promise_bounds_the_fleet(resnet: LatencyProfile):
    trace = parse_spec(GOLD, seed=1)
    plain = parse_promise("attainment>=0.1")
    strict = parse_promise("attainment>=0.1,gold:attainment>=0.999,gold:accuracy>=0.8")
    low, high = (
        certify(resnet, traffic_of(trace, 0.036, p), p, programs=False).workers
        for p in (plain, strict)
    )
    assert low < high
    floored = parse_promise("attainment>=0.99,floor>=0.8")
    found = certify(resnet, traffic_of(trace, 0.036, floored), floored, programs=False)
    assert (
        found.workers
        > certify(
            resnet, traffic_of(trace, 0.036, Promise(0.99)), Promise(0.99), programs=False
        ).workers
    )


def test_a_group_that_the_trace_lacks_is_named(resnet: LatencyProfile):
    trace = parse_spec(GOLD, seed=1)
    with pytest.raises(TraceError, match="names tenant 'silver', of which the trace has gold, tin"):
        traffic_of(trace, 0.036, parse_promise("attainment>=0.9,silver:attainment>=0.99"))
    with pytest.raises(TraceError, match="names class '7', of which the trace has none"):
        traffic_of(trace, 0.036, parse_promise("attainment>=0.9,7:attainment>=0.99"))


def test_every_trial_is_redrawn_by_the_same_draw(resnet: LatencyProfile):
    assert common_draw(120) is common_draw(120)
    assert common_draw(120).shape == (RESAMPLES, 120)
    values = np.random.default_rng(0).random(120)
    assert redrawn_sums(values) == pytest.approx([values[row].sum() for row in common_draw(120)])
    traffic = traffic_of(parse_spec("gamma:rate=6000,cv2=8,duration=4"), 0.036, Promise(0.9))
    four, five = (run_trial(candidate(resnet), count, traffic) for count in (4, 5))
    # Paired, the difference is surer than two intervals side by side.
    accuracy = five.less(four)[1]
    apart = five.intervals()[1].low - four.intervals()[1].high
    assert apart < accuracy.low <= accuracy.high
    assert five.less(five) == ((0.0, 0.0), (0.0, 0.0))


def test_a_group_that_part_of_a_trace_lacks_bounds_nothing_there(resnet: LatencyProfile):
    """With the trace's own deadlines the longest of none was asked for."""
    early = Trace(
        arrival_s=np.arange(0, 4, 0.01), duration_s=4.0, slo_s=np.full(400, 0.036),
        query_class=np.repeat([0, 1], 200),
    )  # fmt: skip
    promise = parse_promise("attainment>=0.9,1:attainment>=0.99")
    half = traffic_of(early, None, promise).between(0.0, 2.0)
    assert certify(resnet, half, promise).workers == 1
    assert impossible_part(promise, resnet, half) == ""
    fleet = FleetSearch(Task(half, promise)).fewest(candidate(resnet))
    assert fleet is not None
    assert fleet.workers == 1
