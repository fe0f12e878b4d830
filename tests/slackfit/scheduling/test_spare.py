"""When a worker has time for an errand: what comes meanwhile is served in time behind it."""

from __future__ import annotations

import numpy as np
import pytest

from slackfit.errand import Errand
from slackfit.policies import create_policy
from slackfit.policy import ALONE, DeviceLoad
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Query
from slackfit.scheduling.scheduler import Scheduler

FAST_S = 0.002


@pytest.fixture
def one() -> LatencyProfile:
    """One subnet; a batch of up to four takes 2 ms."""
    row = SubnetProfile(subnet_id="a", accuracy=0.5, macs=0, latency_s={"p50": (FAST_S, FAST_S)})
    return LatencyProfile(
        name="one", device="none", dtype="float32", batch_sizes=(1, 4), subnets=(row,)
    )


def served(profile: LatencyProfile, *, every_s: float, slo_s: float, until_s: float = 2.0):
    """A scheduler that has served queries at an even rate, and now is idle; and the time."""
    scheduler = Scheduler(profile, create_policy("fixed:a", profile))
    for number, now_s in enumerate(np.arange(0.0, until_s, every_s).tolist()):
        scheduler.submit(Query(number, now_s, now_s + slo_s), now_s)
        batch = scheduler.poll(now_s).batch
        assert batch is not None
        scheduler.complete(batch.batch_id, now_s + FAST_S)
    return scheduler, until_s


def test_half_of_the_slo_holds_the_errand_and_what_comes_meanwhile(one: LatencyProfile) -> None:
    scheduler, now_s = served(one, every_s=0.01, slo_s=0.1)

    def may(takes_s: float) -> bool:
        return scheduler.has_time(Errand(takes_s), now_s, ALONE)

    assert may(0.045), "and five or six queries behind it, in two batches: 49 ms of 50"
    assert not may(0.047)
    assert not may(1.0)


@pytest.mark.parametrize("every_s", [0.002, 0.01, 0.1])
@pytest.mark.parametrize("slo_s", [0.02, 0.1])
def test_what_arrives_at_that_rate_is_on_time(
    one: LatencyProfile, every_s: float, slo_s: float
) -> None:
    """The rule against the plain thing: go on the longest errand allowed, and serve."""
    scheduler, now_s = served(one, every_s=max(every_s, FAST_S), slo_s=slo_s)
    allowed = [t for t in np.arange(0.0, 0.2, 1e-3) if scheduler.has_time(Errand(t), now_s, ALONE)]
    takes_s = max(allowed, default=0.0)
    assert 0.2 * slo_s < takes_s < 0.5 * slo_s
    arrivals = np.arange(now_s, now_s + takes_s, every_s).tolist()
    for number, at_s in enumerate(arrivals, start=10**6):
        assert scheduler.submit(Query(number, at_s, at_s + slo_s), at_s) is None
    now_s += takes_s
    outcomes = []
    while (batch := scheduler.poll(now_s).batch) is not None:
        now_s += batch.expected_latency_s
        outcomes += scheduler.complete(batch.batch_id, now_s)
    assert [outcome.status for outcome in outcomes] == ["on_time"] * len(arrivals)


def test_there_is_no_time_while_queries_wait_or_run(one: LatencyProfile) -> None:
    scheduler, now_s = served(one, every_s=0.1, slo_s=0.1)
    errand = Errand(1e-3)
    assert scheduler.has_time(errand, now_s, ALONE)
    scheduler.submit(Query(10**6, now_s, now_s + 0.1), now_s)
    assert not scheduler.has_time(errand, now_s, ALONE), "one waits"
    batch = scheduler.poll(now_s).batch
    assert batch is not None
    assert not scheduler.has_time(errand, now_s, ALONE), "one runs"
    scheduler.complete(batch.batch_id, now_s + FAST_S)
    assert scheduler.has_time(errand, now_s + FAST_S, ALONE)


def test_other_models_count(one: LatencyProfile) -> None:
    scheduler, now_s = served(one, every_s=0.1, slo_s=0.1)

    def may(others: DeviceLoad) -> bool:
        return scheduler.has_time(Errand(0.02), now_s, others)

    assert may(ALONE)
    assert may(DeviceLoad(1, waiting_s=0.01, arriving=0.1, slo_s=0.1))
    assert not may(DeviceLoad(1, waiting_s=0.03, slo_s=0.1)), "their queue comes behind it"
    assert not may(DeviceLoad(1, arriving=2.0, slo_s=0.1)), "what arrives takes 40 ms"
    assert not may(DeviceLoad(1, slo_s=0.03)), "they promise more"


def test_a_device_that_would_be_slower_afterwards_has_to_keep_up(one: LatencyProfile) -> None:
    scheduler, now_s = served(one, every_s=0.01, slo_s=10.0)
    assert scheduler.has_time(Errand(0.01, slows=True), now_s, ALONE, one.scaled(10.0))
    slow = one.scaled(20.0)  # 40 ms for four: as many as come
    assert not scheduler.has_time(Errand(0.01, slows=True), now_s, ALONE, slow)
    assert scheduler.has_time(Errand(0.01), now_s, ALONE, slow)


def test_a_device_slower_than_profiled_has_less_time(one: LatencyProfile) -> None:
    scheduler = Scheduler(one, create_policy("fixed:a", one), correct_latency=True)
    for number in range(300):
        now_s = number * 0.1
        scheduler.submit(Query(number, now_s, now_s + 0.1), now_s)
        batch = scheduler.poll(now_s).batch
        assert batch is not None
        scheduler.complete(batch.batch_id, now_s + 4 * FAST_S)
    assert scheduler.latency_factor is not None
    now_s += 0.09
    assert not scheduler.has_time(Errand(0.045), now_s, ALONE)
    assert scheduler.has_time(Errand(0.035), now_s, ALONE)
