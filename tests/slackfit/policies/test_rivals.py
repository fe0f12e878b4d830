"""INFaaS, SUSHI, the model zoo and the periodic re-planner, decision by decision."""

from __future__ import annotations

import re

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.policies.modelzoo import ModelZoo
from slackfit.policies.proteus import Proteus
from slackfit.policy import WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.decide import SchedulerView
from slackfit.scheduling.edf import EdfQueue
from slackfit.simulation.simulate import simulate


def decided(
    name: str,
    profile: LatencyProfile,
    *,
    slack_s: float,
    count: int = 40,
    floor: float = 0.0,
    loaded: str | None = None,
) -> tuple[str, int]:
    """Return (accuracy in percent, batch size) that a policy chooses for equal queries."""
    queue = EdfQueue()
    for i in range(count):
        queue.push(Query(i, 0.0, slack_s, min_accuracy=floor))
    view = SchedulerView(queue, [WorkerView(0, 0.0, loaded)], profile)
    decision = create_policy(name, profile).decide(view, 0.0)
    assert decision is not None
    return decision.subnet_id.removeprefix("resnet-"), decision.batch_size


@pytest.mark.parametrize(
    ("floor", "slack_s", "expected"),
    [
        (0.0, 0.036, ("73.82", 16)),
        (0.0, 0.005, ("73.82", 8)),
        (0.77, 0.036, ("77.64", 16)),
        (0.79, 0.010, ("79.44", 4)),
        (0.79, 0.001, ("79.44", 16)),  # late: the largest
    ],
)
def test_infaas_serves_the_cheapest_that_satisfies(resnet, floor, slack_s, expected):
    assert decided("infaas", resnet, slack_s=slack_s, floor=floor) == expected


@pytest.mark.parametrize(
    ("name", "slack_s", "floor", "expected"),
    [
        ("sushi", 0.036, 0.0, ("80.16", 1)),
        ("sushi", 0.00333, 0.0, ("79.44", 1)),  # exactly affordable
        ("sushi", 0.0001, 0.0, ("73.82", 1)),
        ("sushi@strict=accuracy", 0.0001, 0.77, ("77.64", 1)),
        ("sushi@strict=accuracy@batch_size=8", 0.036, 0.0, ("73.82", 8)),
        ("sushi@batch_size=8", 0.012, 0.0, ("79.44", 8)),
    ],
)
def test_sushi_is_strict_in_what_it_is_told(resnet, name, slack_s, floor, expected):
    assert decided(name, resnet, slack_s=slack_s, floor=floor) == expected


@pytest.mark.parametrize(
    ("loaded", "slack_s", "expected"),
    [
        (None, 0.036, ("80.16", 16)),  # nothing is loaded yet: SlackFit's choice
        ("resnet-73.82", 0.036, ("73.82", 16)),  # loading 40 ms is more than the slack
        ("resnet-73.82", 0.100, ("80.16", 16)),
        ("resnet-80.16", 0.003, ("73.82", 1)),  # the loaded one serves nothing in time
    ],
)
def test_the_model_zoo_loads_only_what_the_slack_affords(resnet, loaded, slack_s, expected):
    assert decided("modelzoo", resnet, slack_s=slack_s, loaded=loaded) == expected


def test_loading_times_follow_macs(resnet):
    costs_s = ModelZoo(resnet, loading_s=0.04).switch_cost_s
    assert costs_s["resnet-80.16"] == 0.04
    assert costs_s["resnet-73.82"] == pytest.approx(0.04 * 0.9 / 7.55)


def test_the_zoo_pays_for_its_switches_and_a_supernet_does_not(resnet):
    arrival_s = np.arange(0.0, 1.0, 1 / 3000)
    arrival_s = np.concatenate([arrival_s, 1.0 + np.arange(0.0, 0.5, 1 / 12_000)])
    latest_s = {}
    for name in ("modelzoo@loading_s=0.0", "modelzoo", "slackfit"):
        policy = create_policy(name, resnet)
        outcomes = simulate(arrival_s, resnet, policy, slo_s=0.036, num_workers=8)
        latest_s[name] = max(o.latency_s for o in outcomes)
    assert latest_s["modelzoo"] > 1.2 * latest_s["slackfit"]
    assert latest_s["modelzoo@loading_s=0.0"] == latest_s["slackfit"]


def test_proteus_plans_for_the_measured_rate_and_keeps_to_it_for_a_period(resnet):
    arrival_s = np.arange(0.0, 4.0, 1 / 6000)
    policy = Proteus(resnet, period_s=1.0, headroom=1.0, loading_s=0.0)
    outcomes = simulate(arrival_s, resnet, policy, slo_s=0.036, num_workers=8)
    per_second = [
        {o.subnet_id for o in outcomes if s <= (o.start_s or 0) < s + 1} for s in range(4)
    ]
    assert per_second[0] == {"resnet-73.82"}
    assert per_second[2] == per_second[3] != per_second[0]
    # 8 devices of 79.44 in batches of 8 carry 5,470 queries/s, of 78.25 in 16 carry 11,130.
    assert per_second[2] == {"resnet-79.44", "resnet-78.25"}
    assert all(o.status == "on_time" for o in outcomes if o.arrival_s > 3.0)


@pytest.mark.parametrize("rate_qps", [0.0, 3000.0, 9000.0, 14_000.0, 1e6])
def test_no_other_mix_of_two_subnets_carries_the_rate_more_accurately(resnet, rate_qps):
    policy = Proteus(resnet)
    rows = resnet.table()
    size = {s: max(b for b in (1, 2, 4, 8, 16) if b == 1 or rows[s][b] <= 0.018) for s in rows}
    capacity = {s: size[s] / rows[s][size[s]] for s in rows}

    def value(high: str, low: str, num_low: int) -> float:
        high_qps, low_qps = (8 - num_low) * capacity[high], num_low * capacity[low]
        if high_qps + low_qps < rate_qps:
            return -1.0
        share = min(high_qps, rate_qps) / rate_qps if rate_qps else 1.0
        return share * resnet.accuracy(high) + (1 - share) * resnet.accuracy(low)

    planned = policy._planned(rate_qps, 0.036, 8)
    assert len(planned) == 8
    high, low = planned[0], planned[-1]
    mixes = [value(h, w, n) for h in rows for w in rows for n in range(9)]
    best = max(mixes)
    if best < 0:
        assert set(planned) == {"resnet-73.82"}
    else:
        num_low = planned.count(low) if low != high else 0
        assert value(high, low, num_low) == pytest.approx(best)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sushi@strict=both", "strict is 'both', allowed latency, accuracy"),
        ("sushi@batch_size=17", "batch_size is 17, allowed 1 to 16"),
        ("modelzoo@loading_s=-1", "loading_s is -1, allowed a finite time of 0 or more"),
        ("proteus@period_s=0", "period_s is 0 and headroom 1.05, allowed more than 0 for both"),
        ("sushi@strict", "policy parameter 'strict' is not of the form key=value"),
    ],
)
def test_bad_parameters_are_refused(resnet, name, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        create_policy(name, resnet)
