"""What happens to simulated devices: noise, failures, slow-downs, other profiles, switches."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from slackfit.derive import with_overhead
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from slackfit.simulation.devices import DeviceModel, Devices, Failure, Slowdown
from slackfit.simulation.simulate import simulate

PAIR = LatencyProfile(
    name="pair",
    device="none",
    dtype="none",
    batch_sizes=(1,),
    subnets=(
        SubnetProfile(
            subnet_id="a",
            accuracy=0.5,
            macs=1,
            latency_s={"p50": (1.0,), "p90": (2.0,), "p99": (4.0,)},
        ),
    ),
)


def run(arrival_s, num_workers=1, seed=0, **devices):
    return simulate(
        np.array(arrival_s, dtype=float),
        PAIR,
        create_policy("fixed:a", PAIR),
        slo_s=100.0,
        num_workers=num_workers,
        seed=seed,
        devices=DeviceModel(**devices),
    )


def test_a_failed_worker_loses_what_it_runs_and_is_not_used_again():
    events = [Failure(0.5, 0)]
    outcomes = run([0.0, 0.1, 0.2, 3.0], num_workers=2, events=events)
    assert [o.status for o in outcomes] == ["failed", "on_time", "on_time", "on_time"]
    assert (outcomes[0].reason, outcomes[0].finish_s) == ("worker failed", 0.5)
    assert [o.worker_id for o in outcomes[1:]] == [1, 1, 1]
    assert [o.finish_s for o in outcomes[1:]] == pytest.approx([1.1, 2.1, 4.0])


def test_when_all_workers_have_failed_the_waiting_end_as_cancelled():
    outcomes = run([0.0, 0.1, 5.0], events=[Failure(0.5, 0)])
    assert [(o.status, o.reason) for o in outcomes] == [
        ("failed", "worker failed"),
        ("dropped", "cancelled"),
        ("dropped", "cancelled"),
    ]


def test_an_idle_worker_may_fail():
    outcomes = run([0.0, 2.0], num_workers=2, events=[Failure(0.5, 1), Failure(1.5, 0)])
    assert [o.status for o in outcomes] == ["on_time", "dropped"]


def test_a_slowdown_holds_for_what_starts_after_it_until_the_next():
    events = [Slowdown(0.5, 0, 3.0), Slowdown(6.0, 0, 1.0)]
    outcomes = run([0.0, 2.0, 7.0], events=events)
    assert [o.finish_s for o in outcomes] == [1.0, 5.0, 8.0]


def test_each_worker_may_have_its_own_profile():
    outcomes = run([0.0, 0.0], num_workers=2, profiles=[PAIR, with_overhead(PAIR, 0.5)])
    assert [o.finish_s for o in outcomes] == [1.0, 1.5]


def test_noise_from_quantiles_repeats_with_its_seed_and_has_those_quantiles():
    def latencies(seed: int) -> list[float]:
        outcomes = run(np.arange(20_000) * 10.0, noise=PAIR, seed=seed)
        return [o.latency_s for o in outcomes]

    first = latencies(1)
    assert first == latencies(1) != latencies(2)
    assert np.quantile(first, [0.25, 0.9, 0.995]) == pytest.approx([1.0, 2.0, 4.0], rel=0.05)


def test_noise_from_residuals_draws_each_equally_often():
    outcomes = run(np.arange(8000) * 10.0, noise=[0.5, 1.0, 3.0, 3.0])
    counts = Counter(round(o.latency_s, 6) for o in outcomes)
    assert set(counts) == {0.5, 1.0, 3.0}
    assert counts[3.0] / 8000 == pytest.approx(0.5, abs=0.03)


def test_a_switch_costs_what_was_said_and_the_first_subnet_nothing(trio):
    policy = create_policy("slackfit@num_buckets=3", trio)
    slo_s = np.array([1.0, 0.015, 1.0])
    plain, paying = (
        simulate(
            np.array([0.0, 2.0, 4.0]),
            trio,
            policy,
            slo_s=slo_s,
            devices=DeviceModel(switch_cost_s=cost),
        )
        for cost in (0.0, {"small": 0.25, "medium": 0.5, "large": 0.5})
    )
    assert [o.subnet_id for o in plain] == ["large", "small", "large"]
    extra = [b.finish_s - a.finish_s for a, b in zip(plain, paying, strict=True)]
    assert extra == pytest.approx([0.0, 0.25, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overhead_s": -1.0}, "overhead_s is -1.0, allowed 0 or more"),
        ({"switch_cost_s": {"a": -2.0}}, "switch_cost_s goes down to -2.0, allowed 0 or more"),
        ({"profiles": [PAIR]}, "profiles has 1 for 2 workers, allowed one each"),
        ({"noise": []}, "noise needs at least one residual, each a finite ratio above 0"),
    ],
)
def test_bad_devices_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Devices(2, DeviceModel(**options))


def test_noise_needs_more_than_a_median(resnet):
    message = (
        "noise needs quantiles beyond p50, profile 'superserve_resnet_2080ti' has p50 for all "
        "subnets; measure them, or give residuals"
    )
    with pytest.raises(ProfileError, match=f"^{re.escape(message)}$"):
        Devices(1, DeviceModel(noise=resnet))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            [Failure(1.0, 2)],
            "Failure(at_s=1.0, worker_id=2) is of an unknown worker, allowed 0 to 0",
        ),
        ([Failure(1.0, 0), Failure(2.0, 0)], "failures of workers [0, 0]: each worker fails once"),
        ([Slowdown(1.0, 0, 0.0)], "Slowdown(at_s=1.0, worker_id=0, factor=0.0) has a bad factor"),
    ],
)
def test_bad_events_are_refused(events, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run([0.0], events=events)
