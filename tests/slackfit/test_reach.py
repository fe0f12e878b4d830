"""Refusing what is out of reach: the estimate, and goodput beyond capacity with and without it."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from slackfit import LatencyProfile, Query, Scheduler, create_policy
from slackfit.policy import WorkerView
from slackfit.profile import SubnetProfile
from slackfit.reach import Reach

IDLE = WorkerView(0, 0.0, None)


def subnet(name: str, accuracy: float, row_s: tuple[float, ...]) -> SubnetProfile:
    return SubnetProfile(subnet_id=name, accuracy=accuracy, macs=0, latency_s={"p50": row_s})


# As the CPU of the demo: a batch of 16 is 5 times as efficient as one query alone.
PROFILE = LatencyProfile(
    name="cpu",
    device="nowhere",
    dtype="float32",
    batch_sizes=(1, 4, 16),
    subnets=(
        subnet("small", 0.90, (0.001, 0.0015, 0.003)),
        subnet("middle", 0.94, (0.003, 0.008, 0.028)),
        subnet("large", 0.98, (0.009, 0.034, 0.132)),
    ),
)
CAPACITY_QPS = 16 / 0.003
SLO_S = 0.045


def test_the_estimate_is_full_batches_of_the_fastest_subnet() -> None:
    reach = Reach(PROFILE, "p50")
    assert reach.finish_s(0, [IDLE], 1.0) == pytest.approx(1.001)  # alone
    assert reach.finish_s(3, [IDLE], 1.0) == pytest.approx(1.0015)
    assert reach.finish_s(16, [IDLE], 1.0) == pytest.approx(1.006)  # the second batch, full
    busy = WorkerView(0, 1.5, None)
    assert reach.finish_s(0, [busy], 1.0) == pytest.approx(1.501)
    assert reach.finish_s(16, [busy, IDLE], 1.0) == pytest.approx(1.0 + 0.25 + 0.003, abs=1e-3)
    assert reach.finish_s(5, [WorkerView(0, inf, None)], 1.0) == 1.0, "nobody is left to judge by"


def serve(scheduler: Scheduler, rate_qps: float, duration_s: float = 2.0) -> float:
    """Serve Poisson arrivals as profiled; return the goodput (queries/s)."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / rate_qps, int(rate_qps * duration_s))).tolist()
    now_s, next_id, on_time = 0.0, 0, 0

    def submit_until(until_s: float) -> None:
        nonlocal next_id
        while next_id < len(arrivals) and arrivals[next_id] <= until_s:
            at_s = arrivals[next_id]
            scheduler.submit(Query(next_id, at_s, at_s + SLO_S), at_s)
            next_id += 1

    while next_id < len(arrivals) or len(scheduler):
        batch = scheduler.poll(now_s).batch
        if batch is None:
            now_s = max(now_s, arrivals[next_id]) if next_id < len(arrivals) else now_s + 1e-3
            submit_until(now_s)
            continue
        now_s += PROFILE.latency_s(batch.subnet_id, len(batch.queries))
        submit_until(now_s)
        on_time += sum(o.status == "on_time" for o in scheduler.complete(batch.batch_id, now_s))
    return on_time / arrivals[-1]


def scheduler(policy: str, *, refuse: bool) -> Scheduler:
    return Scheduler(
        PROFILE, create_policy(policy, PROFILE), drop_hopeless=True, refuse_unreachable=refuse
    )


def test_slackfit_keeps_its_goodput_at_twice_its_capacity_only_with_it() -> None:
    plain, refusing = (serve(scheduler("slackfit", refuse=r), 2 * CAPACITY_QPS) for r in (0, 1))
    assert plain < 0.35 * CAPACITY_QPS
    assert refusing > 0.9 * CAPACITY_QPS


def test_nothing_is_refused_below_capacity() -> None:
    rate_qps = 0.1 * CAPACITY_QPS
    plain, refusing = (serve(scheduler("slackfit", refuse=r), rate_qps) for r in (False, True))
    assert plain == refusing


def test_wishes_classes_and_policies_that_give_up_themselves_are_left_alone() -> None:
    def refusals(policy: str, **wish: object) -> int:
        taking = scheduler(policy, refuse=True)
        found = [taking.submit(Query(i, 0.0, SLO_S, **wish), 0.0) for i in range(400)]  # type: ignore[arg-type]
        return sum(outcome is not None and outcome.reason == "infeasible" for outcome in found)

    assert refusals("slackfit") == 400 - 16 * 15  # 15 full batches of 3 ms in 45 ms
    assert refusals("slackfit", query_class=1) == 0
    assert refusals("slackfit", min_accuracy=0.92) == 0
    assert refusals("drainfit") == 0
