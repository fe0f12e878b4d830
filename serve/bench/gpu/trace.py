"""Part `trace` of `serve.bench.gpu`: a day's shape of Azure Functions, served under every policy.

The generator with the published shape of a 2019 sample, squeezed, open loop, against the engine on
this device: no door and no wire. Rate and SLO follow from the latencies measured just before, as
SuperServe's stand to its own: the mean is 1.5 times what the largest subnet can do, the SLO a
little above the slowest batch and never below its 36 ms. Accuracies are the published ones of the
six subnets; weights are random. Beside it the same trace in the simulator, by the same profile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.bench.gpu.cases import GpuBench, random_samples, six
from serve.bench.gpu.engine_target import EngineTarget
from serve.bench.gpu.settings import TrafficSettings
from serve.engine.engine import Engine
from slackfit.metrics import summarize
from slackfit.policies import create_policy, policy_names
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.simulate import simulate_queries
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.profiling.profiler import measure_profile
from traces.generators.azure_shape import azure2019_shape
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay import replay
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.result import ReplayResult
from traces.trace import Trace

_OURS = "drainfit"
_SEED = 0
_LEAST_SLO_S = 0.036
_SLO_OVER_SLOWEST = 36 / 30.7
_LOAD_OF_LARGEST, _LOAD_OF_FASTEST = 1.5, 0.6
_LEAST_REQUESTS = 4  # in a full batch, or there is nothing to put together
_TIMEOUT_S = 5.0
_PAYLOADS = 16
_FIXED = "fixed:"


class TraceTraffic(NamedTuple):
    """What is sent: `trace`, each query of `samples` samples, due `slo_s` after its arrival."""

    trace: Trace
    samples: int
    slo_s: float
    told: str


def trace(bench: GpuBench) -> None:
    """Measure the six subnets, then serve the trace under each policy."""
    family = bench.settings.six_family
    checkpoint = bench.checkpoint(family, tuple(six(family).values()))
    executor = bench.executor(checkpoint)
    profile = measure_profile(
        executor, checkpoint, batch_sizes=bench.settings.batch_sizes, repeats=bench.settings.rounds
    ).pareto()
    traffic = made_traffic(profile, bench.settings.traffic)
    images = np.stack([random_samples(checkpoint, traffic.samples)] * _PAYLOADS)
    utility: dict[str, float] = {}
    late: list[str] = []
    policies = fixed_and_others(profile)
    for policy in policies:
        if bench.left_s < 0:
            break
        served, fallback = asyncio.run(_served(executor, profile, policy, traffic, images))
        if fallback:
            bench.failures.append(f"trace/{policy}: {fallback}")
        utility[policy] = _record(bench, policy, profile, traffic, served)
        late += [f"{policy}: {served.invalid_reason}"] if not served.is_valid else []
    executor.close()
    if utility:
        detail = "; ".join(late) or f"the sender kept its times in all {len(utility)} runs"
        bench.record("trace/azure/invalid_runs", len(late), "count", detail)
    else:
        bench.absent("trace/azure/invalid_runs", "count", "the time ended before the first run")
    against_fixed(bench, utility, policies)


def made_traffic(profile: LatencyProfile, settings: TrafficSettings) -> TraceTraffic:
    """Return the traffic that suits a device; rates are of samples, over all requests."""
    largest = profile.max_batch_size
    slowest_s = max(profile.latency_s(i, largest) for i in profile.subnet_ids)
    most_accurate = largest / profile.latency_s(profile.subnet_ids[-1], largest)
    wanted = min(
        _LOAD_OF_LARGEST * most_accurate, _LOAD_OF_FASTEST * profile.fastest().capacity_qps
    )
    most = max(1, largest // _LEAST_REQUESTS)
    sizes = [2**n for n in range(most.bit_length())]
    samples = next((n for n in sizes if wanted / n <= settings.most_qps), sizes[-1])
    rate_qps = min(wanted / samples, settings.most_qps)
    slo_s = max(_LEAST_SLO_S, _SLO_OVER_SLOWEST * slowest_s)
    told = (
        f"azure2019-shape:qps={rate_qps:.1f},duration={settings.duration_s:g}, requests of "
        f"{samples}, SLO {1e3 * slo_s:.1f} ms; {rate_qps * samples / most_accurate:.2f} of what "
        "the largest subnet can do in full batches"
    )
    trace = azure2019_shape(rate_qps, settings.duration_s, seed=_SEED)
    return TraceTraffic(trace, samples, slo_s, told)


async def _served(
    executor: CudaExecutor,
    profile: LatencyProfile,
    policy: str,
    traffic: TraceTraffic,
    images: np.ndarray,
) -> tuple[ReplayResult, str]:
    """Replay the trace against a fresh engine, set as a server; also what became of the policy."""
    engine = Engine(_scheduler(profile, policy), executor)
    await engine.start()
    try:
        options = ReplayOptions(slo_s=traffic.slo_s, seed=_SEED, timeout_s=_TIMEOUT_S)
        served = await replay(traffic.trace, EngineTarget(engine), Payloads(images), options)
        return served, engine.status().fallback
    finally:
        await engine.stop()


def _scheduler(profile: LatencyProfile, policy: str) -> Scheduler:
    made = create_policy(policy, profile)
    return Scheduler(profile, made, correct_latency=True, triage=True)


def _record(
    bench: GpuBench,
    policy: str,
    profile: LatencyProfile,
    traffic: TraceTraffic,
    served: ReplayResult,
) -> float:
    """Record a policy's run; return its utility."""
    report = _report(served.outcomes, policy, profile, traffic)
    simulated = _simulated(policy, profile, traffic)
    counts = ", ".join(f"{count} {what}" for what, count in report["outcomes"].items() if count)
    detail = (
        f"{counts}; {traffic.told}; sender's lag p99 {served.lag_ms['p99']:.2f} ms, "
        f"{served.invalid_reason or 'valid'}; simulated attainment "
        f"{simulated['slo_attainment']:.4f}, accuracy {simulated['mean_serving_accuracy']:.4f}"
    )
    if report["outcomes"]["failed"]:
        reasons = report["reasons"]
        bench.failures.append(f"trace/{policy}: {report['outcomes']['failed']} failed, {reasons}")
    figure = f"trace/azure/{policy}"
    bench.record(f"{figure}/attainment", report["slo_attainment"], "fraction", detail)
    bench.record(f"{figure}/accuracy", report["mean_serving_accuracy"], "fraction", detail)
    bench.record(f"{figure}/utility", report["utility"], "fraction", detail)
    gap = report["utility"] - simulated["utility"]
    bench.record(f"{figure}/utility_less_simulated", gap, "fraction", detail)
    return report["utility"]


def _simulated(policy: str, profile: LatencyProfile, traffic: TraceTraffic) -> dict[str, Any]:
    """Return the report of the same trace in virtual time, one device as profiled."""
    queries = [
        Query(number, arrival_s, arrival_s + traffic.slo_s, samples=traffic.samples)
        for number, arrival_s in enumerate(traffic.trace.arrival_s.tolist())
    ]
    outcomes = simulate_queries(queries, _scheduler(profile, policy))
    return _report(outcomes, policy, profile, traffic)


def _report(
    outcomes: Any, policy: str, profile: LatencyProfile, traffic: TraceTraffic
) -> dict[str, Any]:
    return summarize(
        outcomes,
        policy=policy,
        slo_s=traffic.slo_s,
        duration_s=traffic.trace.duration_s,
        seed=_SEED,
        profile=profile.name,
    )


def against_fixed(bench: GpuBench, utility: dict[str, float], policies: Sequence[str]) -> None:
    """Record by how much ours is better than the best fixed subnet; all of them must have run."""
    wanted = [name for name in policies if name.startswith(_FIXED)]
    fixed = {name: utility[name] for name in wanted if name in utility}
    figure = f"trace/azure/{_OURS}/utility_less_best_fixed"
    if _OURS not in utility or len(fixed) < len(wanted):
        why = f"the time ended before ours and every fixed subnet had run: {len(fixed)} had"
        bench.absent(figure, "fraction", why)
        return
    best = max(fixed, key=lambda name: fixed[name])
    detail = f"{_OURS} {utility[_OURS]:.4f}, {best} {fixed[best]:.4f}, of {', '.join(fixed)}"
    bench.record(figure, utility[_OURS] - fixed[best], "fraction", detail)


def fixed_and_others(profile: LatencyProfile) -> list[str]:
    """Every policy there is, and every subnet by itself.

    Ours and the fixed ones come first: what counts most if time ends.
    """
    names = [name for name in policy_names() if "<" not in name]
    known = {create_policy(name, profile).name for name in names if name.startswith(_FIXED)}
    each = (_FIXED + subnet_id for subnet_id in profile.subnet_ids)
    names += [name for name in each if name not in known]
    return sorted(names, key=lambda name: (name != _OURS, not name.startswith(_FIXED)))
