"""How fast simulation and decisions are, in processor time of one core, and M/D/1 waiting times."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from serve.bench.policies.superserve_paper import NUM_WORKERS, RESNET_SLO_S, load_spec
from serve.bench.rows import Row, row
from slackfit.derive import densified
from slackfit.policies import create_policy
from slackfit.policy import WorkerView
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Query
from slackfit.scheduling.decide import SchedulerView
from slackfit.scheduling.edf import EdfQueue
from slackfit.simulation.simulate import simulate
from traces.simulation.cells import estimate
from traces.spec.spec import parse_spec


def rows(profile: Path) -> list[Row]:
    """Return the rows of speed and queueing theory."""
    table = LatencyProfile.load(profile)
    found = [
        _simulated(table, name, least_qps)
        for name, least_qps in (("slackfit", 4e5), ("drainfit", 2e5))
    ]
    found += [_decision(table, name) for name in ("slackfit", "drainfit")]
    return found + [_m_d_1(load) for load in (0.3, 0.6, 0.8)]


def _simulated(profile: LatencyProfile, name: str, least_qps: float) -> Row:
    """Queries simulated per second at 7,000 queries/s, the best of three runs of 10 s."""
    arrival_s = parse_spec(load_spec(7000, 4, 10), seed=0).arrival_s
    rates: list[float] = []
    for _ in range(3):
        policy = create_policy(name, profile)
        began_s = time.process_time()
        simulate(arrival_s, profile, policy, slo_s=RESNET_SLO_S, num_workers=NUM_WORKERS)
        rates.append(len(arrival_s) / (time.process_time() - began_s))
    detail = f">= {least_qps:,.0f}; 7,000 queries/s, 8 workers, processor time, best of 3"
    return row(f"policies/speed/{name}/simulated", max(rates), "queries/s", detail, digits=None)


def _decision(profile: LatencyProfile, name: str) -> Row:
    """The 99th percentile of one decision with 10,000 queries waiting."""
    dense = densified(profile, 66)
    queue = EdfQueue()
    for i in range(10_000):
        queue.push(Query(i, i * 1e-5, i * 1e-5 + 0.136))
    view = SchedulerView(queue, [WorkerView(i, 0.1 + i * 1e-3, None) for i in range(8)], dense)
    view.note_arrivals([i * 1e-5 for i in range(10_000)])
    policy = create_policy(name, dense)
    took_s: list[float] = []
    for i in range(20_000):
        view.now_s = now_s = 0.1 + i * 1e-7
        began = time.perf_counter_ns()
        decision = policy.decide(view, now_s)
        took_s.append((time.perf_counter_ns() - began) * 1e-9)
        assert decision is not None, "both always decide"
        view.memo = decision.memo
    p50, p99 = np.quantile(took_s, [0.5, 0.99]) * 1e6
    detail = f"<= 20; p50 {p50:.2f} us; 10,000 waiting, 64 subnets, 8 workers, wall time"
    return row(f"policies/speed/{name}/decision_p99", p99, "us", detail, digits=2)


def _m_d_1(load: float) -> Row:
    """Mean wait over theory on one worker with a constant service time; batch means."""
    service_s = 0.01
    only = SubnetProfile(subnet_id="only", accuracy=1.0, macs=1, latency_s={"p50": (service_s,)})
    profile = LatencyProfile(
        name="m-d-1", device="none", dtype="none", batch_sizes=(1,), subnets=(only,)
    )
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(service_s / load, 400_000))
    outcomes = simulate(arrival_s, profile, create_policy("fixed:only", profile), slo_s=10.0)
    waits_s = np.array([o.latency_s - service_s for o in outcomes])
    expected_s = load * service_s / (2 * (1 - load))
    found = estimate((waits_s.reshape(40, -1).mean(axis=1) / expected_s).tolist())
    is_within = math.fabs(found.mean - 1) <= found.half_width
    detail = f"wait / theory; 95 % +-{found.half_width:.5f}, 1 within: {is_within}"
    return row(f"policies/theory/m_d_1/load{load:g}", found.mean, "ratio", detail, digits=5)
