from __future__ import annotations

import io
import json

import numpy as np
import pytest

from slackfit import LatencyProfile, Query, Scheduler, create_policy
from slackfit.scheduling.correction import QUANTILE, LatencyCorrection
from slackfit.scheduling.record import RecordingScheduler, replay_log

PROFILE = LatencyProfile.load("profiles/superserve_resnet_2080ti.json")
SLO_S = 0.036


def drive(
    scheduler: Scheduler,
    slowdown: np.ndarray,
    rate_qps: float,
    *,
    delay_s: float = 0.0,
    accuracies: list[float] | None = None,
) -> float:
    """Serve a steady stream on a device that is slower than profiled; return attainment."""
    now_s, arrived, on_time, total = 0.0, 0, 0, 0
    for ratio in slowdown:
        while arrived / rate_qps <= now_s:
            arrival_s = arrived / rate_qps
            scheduler.submit(Query(arrived, arrival_s, arrival_s + SLO_S), now_s)
            arrived += 1
        batch = scheduler.poll(now_s).batch
        if batch is None:
            now_s = max(now_s, arrived / rate_qps)
            continue
        profiled_s = PROFILE.latency_s(batch.subnet_id, len(batch.queries))
        now_s += ratio * profiled_s + delay_s
        outcomes = scheduler.complete(batch.batch_id, now_s)
        on_time += sum(o.status == "on_time" for o in outcomes)
        total += len(outcomes)
        if accuracies is not None:
            accuracies += [o.accuracy for o in outcomes]
    return on_time / total


@pytest.mark.parametrize("subnet_id", ["resnet-73.82", "resnet-80.16"])
def test_the_prediction_settles_at_the_asked_for_quantile(
    rng: np.random.Generator, subnet_id: str
) -> None:
    correction = LatencyCorrection(PROFILE, "p50")
    profiled_s = PROFILE.latency_s(subnet_id, 4)
    below = []
    for ratio in np.exp(rng.normal(0.5, 0.3, 5000)):
        correction.observe(subnet_id, 4, ratio * profiled_s)
        predicted_s = correction.factor * profiled_s + correction.delay_s
        below.append(ratio * profiled_s <= predicted_s)
    assert np.mean(below[500:]) == pytest.approx(QUANTILE, abs=0.04)


def test_a_wait_before_every_batch_does_not_make_long_batches_look_hopeless() -> None:
    correction = LatencyCorrection(PROFILE, "p50")
    short_s = PROFILE.latency_s("resnet-73.82", 1)
    for _ in range(2000):
        correction.observe("resnet-73.82", 1, short_s + 0.003)
    assert correction.delay_s == pytest.approx(0.003, abs=0.0015)
    assert correction.factor < 1.35, "3 ms on 1.4 ms is no factor of 3"


def test_accuracy_survives_a_wait_before_every_batch() -> None:
    scheduler = Scheduler(PROFILE, create_policy("drainfit", PROFILE), correct_latency=True)
    accuracies: list[float] = []
    attainment = drive(scheduler, np.ones(3000), rate_qps=50, delay_s=0.004, accuracies=accuracies)
    assert attainment > 0.99
    assert np.mean(accuracies[500:]) > 0.795, "almost always the largest subnet"


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_a_profile_off_by_a_constant_is_corrected(ratio: float) -> None:
    scheduler = Scheduler(PROFILE, create_policy("slackfit", PROFILE), correct_latency=True)
    drive(scheduler, np.full(3000, ratio), rate_qps=400)
    assert scheduler.latency_factor == pytest.approx(ratio, rel=0.12)


def test_correction_restores_deadlines_on_a_device_twice_as_slow() -> None:
    slow = np.full(3000, 2.0)
    plain = Scheduler(PROFILE, create_policy("slackfit", PROFILE))
    corrected = Scheduler(PROFILE, create_policy("slackfit", PROFILE), correct_latency=True)
    assert drive(corrected, slow, rate_qps=800) > 0.99
    assert drive(plain, slow, rate_qps=800) < 0.7


def test_an_exact_profile_is_left_alone() -> None:
    scheduler = Scheduler(PROFILE, create_policy("slackfit", PROFILE), correct_latency=True)
    drive(scheduler, np.ones(2000), rate_qps=400)
    assert scheduler.profile is PROFILE or scheduler.latency_factor == pytest.approx(1.0, rel=0.11)


def test_a_corrected_run_is_decided_again_the_same(rng: np.random.Generator) -> None:
    log = io.StringIO()
    policy = create_policy("slackfit", PROFILE)
    scheduler = RecordingScheduler(PROFILE, policy, sink=log, correct_latency=True)
    drive(scheduler, rng.uniform(1.0, 3.0, 500), rate_qps=400)
    assert scheduler.latency_factor != 1.0
    fresh = Scheduler(PROFILE, create_policy("slackfit", PROFILE), correct_latency=True)
    lines = log.getvalue().splitlines()
    assert replay_log(lines, fresh) == len(lines) - 1
    uncorrected = Scheduler(PROFILE, create_policy("slackfit", PROFILE))
    with pytest.raises(ValueError, match="correct_latency"):
        replay_log(lines, uncorrected)


def test_a_scaled_profile_scales_every_quantile_and_nothing_else() -> None:
    scaled = PROFILE.scaled(2.0)
    before, after = PROFILE.to_json(), scaled.to_json()
    for row, twice in zip(before.pop("subnets"), after.pop("subnets"), strict=True):
        assert twice.pop("latency_ms")["p50"] == pytest.approx(
            [2 * t for t in row.pop("latency_ms")["p50"]]
        )
        assert json.dumps(row) == json.dumps(twice)
    assert before == after


def test_a_delayed_profile_adds_the_same_to_every_latency() -> None:
    scaled = PROFILE.scaled(2.0, 0.001)
    for subnet_id in PROFILE.subnet_ids:
        for size in PROFILE.batch_sizes:
            wanted_s = 2 * PROFILE.latency_s(subnet_id, size) + 0.001
            assert scaled.latency_s(subnet_id, size) == pytest.approx(wanted_s)
