"""A profile is checked against a few runs: kept, corrected with a warning, or refused."""

from __future__ import annotations

import logging

import pytest

from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from subnetact.profiling.revalidation import recheck, revalidated
from subnetact.timed_executor import TimedExecutor
from supernet.sample import SampleSpec

pytestmark = pytest.mark.alone


class Machine:
    """Virtual time: runs take what `speed` says times the profile, some of them longer."""

    def __init__(self, profile: LatencyProfile, speed: float, noise: tuple[float, ...] = (1.0,)):
        self.now_s = 0.0
        self._speed = speed
        self._noise = noise
        self._runs = 0
        self.executor = TimedExecutor(
            profile, SampleSpec(shape=(1, 8, 8)), 10, clock=self.clock, sleep=self.sleep
        )

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds * self._speed * self._noise[self._runs % len(self._noise)]
        self._runs += 1


@pytest.fixture
def profile() -> LatencyProfile:
    return LatencyProfile(
        name="made",
        device="cpu",
        dtype="float32",
        batch_sizes=(1, 4, 16),
        subnets=tuple(
            SubnetProfile(
                subnet_id=name,
                accuracy=accuracy,
                macs=1,
                latency_s={"p50": (base_s, 3 * base_s, 10 * base_s)},
            )
            for name, accuracy, base_s in (("s", 0.7, 0.002), ("m", 0.75, 0.004), ("l", 0.8, 0.01))
        ),
    )


def test_it_runs_the_fastest_and_the_slowest_at_two_sizes(profile: LatencyProfile) -> None:
    machine = Machine(profile, speed=1.5)
    checks = recheck(machine.executor, profile, clock=machine.clock)
    assert [(c.subnet_id, c.batch_size) for c in checks] == [
        ("s", 1), ("s", 4), ("l", 1), ("l", 4),
    ]  # fmt: skip
    assert [c.ratio for c in checks] == pytest.approx([1.5] * 4)


def test_a_machine_that_is_busy_now_and_then_leaves_the_profile_alone(
    profile: LatencyProfile, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(profile, speed=1.1, noise=(5.0, 1.0, 3.0, 2.0, 1.0, 9.0, 1.0))
    assert revalidated(machine.executor, profile, clock=machine.clock) is profile
    assert not caplog.records


@pytest.mark.parametrize("speed", [2.0, 0.4, 0.05])
def test_a_machine_of_another_speed_corrects_it_with_a_warning(
    profile: LatencyProfile, speed: float, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(profile, speed)
    with caplog.at_level(logging.WARNING):
        corrected = revalidated(machine.executor, profile, clock=machine.clock)
    assert corrected.latency_s("m", 4) == pytest.approx(speed * profile.latency_s("m", 4))
    assert f"off by a factor of {speed:.2f}" in caplog.text


def test_a_profile_of_something_else_is_refused(profile: LatencyProfile) -> None:
    machine = Machine(profile, speed=12.0)
    with pytest.raises(ProfileError, match="'made' is not of this machine: runs take"):
        revalidated(machine.executor, profile, clock=machine.clock)


def test_slow_subnets_are_not_run_for_long(profile: LatencyProfile) -> None:
    machine = Machine(profile.scaled(1000), speed=1.0)
    checks = recheck(machine.executor, profile.scaled(1000), clock=machine.clock, at_most_s=1.0)
    assert len(checks) == 4
    assert machine.now_s == pytest.approx(2 * (2 + 6 + 10 + 30))
