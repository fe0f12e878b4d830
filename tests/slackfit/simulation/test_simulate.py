"""The virtual-time driver against hand-computed schedules and queueing theory."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.simulation.devices import DeviceModel
from slackfit.simulation.simulate import simulate


def one_subnet(latency_s: float) -> LatencyProfile:
    subnet = SubnetProfile(subnet_id="only", accuracy=0.8, macs=1, latency_s={"p50": (latency_s,)})
    return LatencyProfile(
        name="one", device="none", dtype="none", batch_sizes=(1,), subnets=(subnet,)
    )


def test_three_queries_on_one_worker_run_one_after_the_other():
    profile = one_subnet(1.0)
    outcomes = simulate(
        np.array([0.0, 0.5, 3.0]), profile, create_policy("fixed:only", profile), slo_s=1.2
    )
    assert [o.start_s for o in outcomes] == [0.0, 1.0, 3.0]
    assert [o.finish_s for o in outcomes] == [1.0, 2.0, 4.0]
    assert [o.status for o in outcomes] == ["on_time", "late", "on_time"]


def test_completions_come_before_arrivals_at_the_same_time():
    profile = one_subnet(1.0)
    outcomes = simulate(
        np.array([0.0, 1.0]), profile, create_policy("fixed:only", profile), slo_s=1.0
    )
    assert [o.status for o in outcomes] == ["on_time", "on_time"]


def test_outcome_i_belongs_to_arrival_i(resnet: LatencyProfile):
    arrival_s = np.sort(np.random.default_rng(0).uniform(0, 1, 5000))
    outcomes = simulate(
        arrival_s, resnet, create_policy("slackfit", resnet), slo_s=0.036, num_workers=8
    )
    assert [o.query_id for o in outcomes] == list(range(5000))
    assert [o.arrival_s for o in outcomes] == arrival_s.tolist()


def test_same_arguments_give_the_same_bytes(resnet: LatencyProfile):
    def report() -> str:
        arrival_s = np.cumsum(np.random.default_rng(7).gamma(0.25, 4 / 6000, 6000))
        outcomes = simulate(
            arrival_s, resnet, create_policy("slackfit", resnet), slo_s=0.036, num_workers=8, seed=7
        )
        return json.dumps(
            summarize(
                outcomes, policy="slackfit", slo_s=0.036, duration_s=1.0, seed=7, profile="resnet"
            )
        )

    assert report() == report()


def test_dispatch_overhead_lengthens_each_batch():
    profile = one_subnet(1.0)
    policy, slow = create_policy("fixed:only", profile), DeviceModel(overhead_s=0.25)
    outcomes = simulate(np.array([0.0]), profile, policy, slo_s=2.0, devices=slow)
    assert outcomes[0].finish_s == 1.25


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_mean_wait_on_one_worker_is_that_of_an_m_d_1_queue(load: float):
    service_s = 0.01
    rng = np.random.default_rng(3)
    arrival_s = np.cumsum(rng.exponential(service_s / load, 40_000))
    profile = one_subnet(service_s)
    outcomes = simulate(arrival_s, profile, create_policy("fixed:only", profile), slo_s=1.0)
    waits = np.array([o.finish_s - o.arrival_s - service_s for o in outcomes])
    batches = waits.reshape(40, -1).mean(axis=1)  # batch means: successive waits depend
    error = 4 * batches.std(ddof=1) / np.sqrt(len(batches))
    assert waits.mean() == pytest.approx(load * service_s / (2 * (1 - load)), abs=error)


def test_drops_the_hopeless_when_told_to(resnet: LatencyProfile):
    arrival_s = np.linspace(0, 0.2, 4000)  # 20,000 qps, one worker
    policy = create_policy("fixed:largest", resnet)
    outcomes = simulate(arrival_s, resnet, policy, slo_s=0.036, drop_hopeless=True)
    assert {o.status for o in outcomes} >= {"on_time", "dropped"}
    assert {o.reason for o in outcomes if o.status == "dropped"} <= {"expired", "infeasible"}


class Reluctant:
    """A policy that never decides anything."""

    name = "reluctant"

    def __init__(self, *, drop_hopeless: bool) -> None:
        self.drop_hopeless = drop_hopeless

    def decide(self, view, now_s):
        return None


def test_what_a_policy_leaves_waiting_for_good_is_cancelled_at_the_end():
    profile = one_subnet(1.0)
    outcomes = simulate(
        np.array([0.0, 2.0]), profile, Reluctant(drop_hopeless=False), slo_s=3.0, num_workers=2
    )
    assert [(o.status, o.reason, o.finish_s) for o in outcomes] == [
        ("dropped", "cancelled", 2.0),
        ("dropped", "cancelled", 2.0),
    ]


def test_while_a_policy_waits_the_hopeless_are_dropped_when_they_become_so():
    profile = one_subnet(1.0)
    arrival_s = np.array([0.0, 2.0, 9.0])
    outcomes = simulate(arrival_s, profile, Reluctant(drop_hopeless=True), slo_s=3.0)
    assert [o.reason for o in outcomes] == ["infeasible"] * 3
    assert [o.finish_s for o in outcomes] == pytest.approx([2.0, 4.0, 11.0])


def test_progress_ends_with_all_arrivals():
    profile = one_subnet(0.001)
    seen: list[tuple[int, int]] = []
    simulate(
        np.arange(20_000) * 0.01,
        profile,
        create_policy("fixed:only", profile),
        slo_s=1.0,
        progress=lambda done, count: seen.append((done, count)),
    )
    assert seen == [(16_384, 20_000), (20_000, 20_000)]


@pytest.mark.parametrize(
    ("arrival_s", "slo_s", "message"),
    [
        (
            [0.0, 2.0, 1.0],
            1.0,
            "arrival_s must be sorted, but arrival 2 (1.0 s) comes before arrival 1 (2.0 s)",
        ),
        ([0.0, np.nan], 1.0, "arrival_s has shape (2,), allowed one row of finite times"),
        ([0.0, 1.0], 0.0, "slo_s goes down to 0.0 s, allowed more than 0"),
        (
            [0.0, 1.0],
            np.ones(3),
            "slo_s has shape (3,), allowed one value or one for each of the 2 arrivals",
        ),
    ],
)
def test_bad_arrivals_and_slos_are_refused(arrival_s, slo_s, message):
    profile = one_subnet(1.0)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        simulate(np.array(arrival_s), profile, create_policy("fixed:only", profile), slo_s=slo_s)


def test_no_arrivals_give_no_outcomes():
    profile = one_subnet(1.0)
    assert simulate(np.array([]), profile, create_policy("fixed:only", profile), slo_s=1.0) == []


def test_simulation_keeps_well_above_a_gross_budget(resnet: LatencyProfile):
    arrival_s = np.cumsum(np.random.default_rng(0).gamma(0.25, 4 / 7000, 60_000))
    policy = create_policy("slackfit", resnet)
    begin_s = time.process_time()
    simulate(arrival_s, resnet, policy, slo_s=0.036, num_workers=8)
    assert 60_000 / (time.process_time() - begin_s) > 100_000  # about 600,000 measured
