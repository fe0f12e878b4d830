from __future__ import annotations

import itertools

import pytest

from training.strategies.schedule import EpsilonRamp, RateSchedule

STEPS_PER_EPOCH = 625
PUBLISHED = RateSchedule(lr=2.6, total_steps=270 * STEPS_PER_EPOCH)
RAMP = EpsilonRamp(
    schedule=PUBLISHED,
    start_step=145 * STEPS_PER_EPOCH,
    end_step=150 * STEPS_PER_EPOCH,
    steps_per_epoch=STEPS_PER_EPOCH,
)


@pytest.mark.parametrize(
    ("epoch", "lr", "beta"),
    [
        (145.2, 1.1462, 0.037),
        (146, 1.1341, 0.187),
        (147, 1.1191, 0.379),
        (148, 1.1041, 0.576),
        (149, 1.0892, 0.778),
    ],
)
def test_the_ramp_reproduces_the_published_270_epoch_run(
    epoch: float, lr: float, beta: float
) -> None:
    # The reference row counts whole steps done; the step about to be made is one further.
    step = round(epoch * STEPS_PER_EPOCH)
    assert PUBLISHED.at(step) == pytest.approx(lr, abs=2e-4)
    assert RAMP.at(step - 1) == pytest.approx(beta, abs=1e-3)


def test_the_ramp_is_zero_before_and_one_after() -> None:
    assert RAMP.at(RAMP.start_step - 1) == 0.0
    assert RAMP.at(RAMP.start_step) > 0.0
    assert RAMP.at(RAMP.end_step - 1) == pytest.approx(0.986, abs=1e-3)
    assert RAMP.at(RAMP.end_step) == 1.0


@pytest.mark.parametrize("epochs", [1, 2, 7, 100, 1000])
def test_the_effective_rate_climbs_evenly_for_any_number_of_epochs(epochs: int) -> None:
    schedule = RateSchedule(lr=0.1, total_steps=epochs * 10)
    start, length = epochs * 5, max(2, epochs // 10 * 10)
    ramp = EpsilonRamp(
        schedule=schedule, start_step=start, end_step=start + length, steps_per_epoch=10
    )
    rates = [ramp.at(step) * schedule.at(step) for step in range(start, start + length)]
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    assert all(0 <= ramp.at(step) <= 1 for step in range(epochs * 10))


def test_no_ramp_switches_at_once() -> None:
    ramp = EpsilonRamp(schedule=PUBLISHED, start_step=10, end_step=10, steps_per_epoch=5)
    assert [ramp.at(9), ramp.at(10)] == [0.0, 1.0]


def test_the_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    schedule = RateSchedule(lr=1.0, min_lr=0.1, total_steps=100, warmup_steps=4)
    assert [schedule.at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.at(4) == 1.0
    assert schedule.at(100) == pytest.approx(0.1)


@pytest.mark.parametrize("total_steps", [4, 10, 33, 1000])
def test_in_a_short_run_the_ramp_still_reaches_the_subnets(total_steps: int) -> None:
    # One epoch, or less: the rate one epoch after the ramp is that of the end, zero.
    schedule = RateSchedule(lr=0.1, total_steps=total_steps)
    start = total_steps // 2
    ramp = EpsilonRamp(
        schedule=schedule,
        start_step=start,
        end_step=start + total_steps // 4,
        steps_per_epoch=total_steps,
    )
    betas = [ramp.at(step) for step in range(start, total_steps)]
    assert 0 < betas[0] < 1
    assert betas == sorted(betas)
    assert betas[total_steps // 4 - 1] > 0.2
    assert betas[-1] == 1.0


def test_a_linear_decay_with_a_warm_up_is_a_triangle() -> None:
    schedule = RateSchedule(lr=1.0, min_lr=0.1, total_steps=100, warmup_steps=20, decay="linear")
    assert schedule.at(9) == pytest.approx(0.5)
    assert schedule.at(20) == pytest.approx(1.0)
    assert schedule.at(60) == pytest.approx(0.55)
    assert schedule.at(100) == schedule.at(200) == pytest.approx(0.1)
