"""A trace served in virtual time by several policies: one report each, comparable with replays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slackfit.bounds.bound import utility_bound
from slackfit.compiled.replicas import simulate_round_robin, why_not_routed
from slackfit.compiled.simulate import simulate_columns
from slackfit.metrics import summarize
from slackfit.policies import create_policy
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Devices
from slackfit.simulation.replicas import shared_out, simulate_replicas
from slackfit.simulation.routing import ONE_QUEUE, Routing
from slackfit.simulation.simulate import simulate
from slackfit.simulation.stream import simulate_stream
from traces.burstiness import trace_summary
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import with_figures
from traces.simulation.capacity import Goal, find_capacity
from traces.simulation.progress import simulation_progress
from traces.spec.streamed import stream_spec
from traces.trace import FloatArray, Trace, TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """How a trace is served in virtual time, whatever the policy.

    `slo_s` None takes the trace's own deadlines (the report then names their median);
    `drop_hopeless` None does as the policy says. `seed` draws what is random about the `devices`.
    `routing` says how queries get to `num_replicas` replicas, each with `num_workers` devices.
    `with_bound` adds `bound`, above which no schedule's utility can be, and `of_bound`, the
    utility's share of it.
    """

    slo_s: float | None = None
    num_workers: int = 1
    num_replicas: int = 1
    routing: Routing = ONE_QUEUE
    drop_hopeless: bool | None = None
    seed: int = 0
    devices: DeviceModel = AS_PROFILED
    with_bound: bool = False

    @property
    def num_devices(self) -> int:
        """Devices of all replicas together."""
        return self.num_replicas * self.num_workers


PLAIN = SimulationOptions()
STREAMED = "streamed runs keep a histogram of latencies"
MANY_QUERIES = 100_000
FEW_QUERIES = f"fewer than {MANY_QUERIES:,} queries take no longer there"

OnEnd = Callable[[str, float, str], None]
"""Called with a policy, the seconds that its run took and why it was not compiled (empty: it was).

They are kept out of the reports, which are the same on every machine.
"""

OnOutcomes = Callable[[str, list[Outcome]], None]
"""Called with a policy and every outcome of its run."""


def simulate_policies(
    trace: Trace,
    profile: LatencyProfile,
    policy_names: Sequence[str],
    options: SimulationOptions = PLAIN,
    *,
    on_end: OnEnd | None = None,
    on_outcomes: OnOutcomes | None = None,
) -> list[dict[str, Any]]:
    """Return one report per policy name; the same inputs give the same reports.

    Where devices have a residency, each run begins with a fresh one and its report says how that
    went.

    Raises:
        TraceError: no arrivals, no deadlines, an unknown policy, or devices that can't be; nothing
            has run then.
    """
    deadlines_s = _deadlines_s(trace, options.slo_s)
    _check_devices(profile, options)
    policies = [_create_policy(name, profile) for name in policy_names]
    bound = None
    if options.with_bound:
        bound = utility_bound(
            trace.arrival_s, profile, slo_s=deadlines_s, num_workers=options.num_devices
        )
    reports: list[dict[str, Any]] = []
    for name, policy in policies:
        started_s = time.perf_counter()
        kept = options.devices.residency and options.devices.residency.fresh()
        with simulation_progress(name) as progress:
            outcomes, why = _serve(
                trace,
                profile,
                policy,
                replace(options, devices=replace(options.devices, residency=kept)),
                deadlines_s,
                progress,
            )
        if on_end is not None:
            on_end(name, time.perf_counter() - started_s, why)
        if on_outcomes is not None:
            on_outcomes(name, outcomes)
        extra: dict[str, Any] = {} if kept is None else {"residency": kept.summary()}
        if options.num_replicas > 1:
            extra |= {"replicas": options.num_replicas, "routing": str(options.routing)}
        report = summarize(
            outcomes,
            policy=name,
            slo_s=float(np.median(deadlines_s)),
            duration_s=trace.duration_s,
            seed=options.seed,
            profile=profile.name,
            mode="simulated",
            trace=trace_summary(trace),
            zoom=burst_zoom(outcomes, trace.duration_s),
            **extra,
        )
        report = with_figures(report, outcomes, trace)
        reports.append(report if bound is None else report | _share(report["utility"], bound))
    return reports


def _serve(
    trace: Trace,
    profile: LatencyProfile,
    policy: Policy,
    options: SimulationOptions,
    slo_s: float | FloatArray,
    progress: Callable[[int, int], None],
) -> tuple[list[Outcome], str]:
    """The outcomes of one run, and why it was not compiled (empty: it was).

    A short trace isn't: machine code may have to be made first, which takes some 20 s.
    """
    if len(trace) < MANY_QUERIES:
        return _serve_in_python(trace, profile, policy, options, slo_s, progress), FEW_QUERIES
    if options.routing == ONE_QUEUE:
        simulated = simulate_columns(
            trace.arrival_s,
            profile,
            policy,
            slo_s=slo_s,
            num_workers=options.num_devices,
            seed=options.seed,
            devices=options.devices,
            drop_hopeless=options.drop_hopeless,
            query_class=trace.query_class,
            progress=progress,
        )
        return list(simulated.columns), simulated.why
    why = why_not_routed(options.routing, policy, profile, options.devices)
    if why:
        return _serve_in_python(trace, profile, policy, options, slo_s, progress), why
    columns = simulate_round_robin(
        trace.arrival_s,
        profile,
        policy,
        slo_s=slo_s,
        num_replicas=options.num_replicas,
        num_workers=options.num_workers,
        drop_hopeless=options.drop_hopeless,
        query_class=trace.query_class,
    )
    return list(columns), ""


def _serve_in_python(
    trace: Trace,
    profile: LatencyProfile,
    policy: Policy,
    options: SimulationOptions,
    slo_s: float | FloatArray,
    progress: Callable[[int, int], None],
) -> list[Outcome]:
    common: dict[str, Any] = {
        "slo_s": slo_s,
        "seed": options.seed,
        "devices": options.devices,
        "drop_hopeless": options.drop_hopeless,
        "query_class": trace.query_class,
        "progress": progress,
    }
    if options.routing == ONE_QUEUE:
        return simulate(trace.arrival_s, profile, policy, num_workers=options.num_devices, **common)
    return simulate_replicas(
        trace.arrival_s,
        profile,
        policy,
        options.routing,
        num_replicas=options.num_replicas,
        num_workers=options.num_workers,
        **common,
    )


def _share(utility: float, bound: float) -> dict[str, float]:
    """The bound and the utility's share of it; of nothing, nothing is all."""
    return {"bound": bound, "of_bound": utility / bound if bound > 0 else 1.0}


def find_capacities(
    trace: Trace,
    profile: LatencyProfile,
    policy_names: Sequence[str],
    goal: Goal,
    options: SimulationOptions = PLAIN,
    *,
    on_end: OnEnd | None = None,
    on_outcomes: OnOutcomes | None = None,
) -> list[dict[str, Any]]:
    """Return one report per policy, at the highest rate at which it meets the goal.

    The report has `capacity_qps`, `capacity_target` and `capacity_tried` besides; where no rate
    met the goal, `capacity_qps` is 0 and the report is that of the trace as it is. Raises what
    `simulate_policies` raises.
    """
    key = "slo_attainment" if goal.key == "attainment" else goal.key
    if options.slo_s is None and trace.slo_s is not None and len(trace):
        # Deadlines per query do not scale with the rate.
        options = replace(options, slo_s=float(np.median(trace.slo_s)))
    found: list[dict[str, Any]] = []
    for name in policy_names:

        def report_at(at: Trace, name: str = name) -> dict[str, Any]:
            (report,) = simulate_policies(
                at, profile, [name], options, on_end=on_end, on_outcomes=on_outcomes
            )
            return report

        capacity = find_capacity(trace, goal, lambda at: report_at(at)[key])
        rate_qps = capacity.rate_qps
        report = report_at(trace.rescale_rate(rate_qps) if rate_qps else trace)
        report |= {
            "capacity_qps": rate_qps,
            "capacity_target": f"{goal.key}={goal.least:g}",
            "capacity_tried": [list(pair) for pair in capacity.tried],
        }
        found.append(report)
    return found


def stream_policies(
    spec: str,
    profile: LatencyProfile,
    policy_names: Sequence[str],
    options: SimulationOptions,
    *,
    on_end: OnEnd | None = None,
) -> list[dict[str, Any]]:
    """Return one report per policy in memory that does not grow with the trace.

    The reports lack time series, distributions and bounds; latency quantiles are within 0.5 %.
    Raises TraceError for a SPEC that cannot be streamed, a missing SLO and devices that can't be.
    """
    slo_s = options.slo_s
    if slo_s is None or not 0 < slo_s < float("inf"):
        raise TraceError("a streamed trace carries no deadlines; give an SLO (--slo-ms)")
    _check_devices(profile, options)
    policies = [_create_policy(name, profile) for name in policy_names]
    reports: list[dict[str, Any]] = []
    for name, policy in policies:
        stream = stream_spec(spec, seed=options.seed)
        started_s = time.perf_counter()
        tally = simulate_stream(
            stream.pieces,
            profile,
            policy,
            slo_s=slo_s,
            num_workers=options.num_workers,
            drop_hopeless=options.drop_hopeless,
            seed=options.seed,
            devices=options.devices,
        )
        if on_end is not None:
            on_end(name, time.perf_counter() - started_s, STREAMED)
        report = tally.report(
            policy=name,
            slo_s=slo_s,
            duration_s=stream.duration_s,
            seed=options.seed,
            profile=profile.name,
        )
        reports.append({**report, "mode": "streamed"})
    return reports


def _create_policy(name: str, profile: LatencyProfile) -> tuple[str, Policy]:
    """Return the policy and what to call it: its own name, with the parameters it was given."""
    try:
        policy = create_policy(name, profile)
        _, at, parameters = name.partition("@")
        return policy.name + at + parameters, policy
    except ValueError as error:
        raise TraceError(str(error)) from None


def _check_devices(profile: LatencyProfile, options: SimulationOptions) -> None:
    try:
        Devices(options.num_devices, options.devices)
        if options.routing != ONE_QUEUE:
            shared_out(options.devices, options.num_replicas, options.num_workers)
    except ValueError as error:
        raise TraceError(str(error)) from None
    for other in options.devices.profiles or ():
        missing = sorted({*profile.subnet_ids} - {*other.subnet_ids})
        if missing or other.max_batch_size < profile.max_batch_size:
            raise TraceError(
                f"device profile {other.name!r} lacks subnets {', '.join(missing) or '(none)'} or "
                f"batches up to {profile.max_batch_size} of {profile.name!r}"
            )


def _deadlines_s(trace: Trace, slo_s: float | None) -> float | FloatArray:
    if len(trace) == 0:
        raise TraceError("the trace has no arrivals, there is nothing to simulate")
    if slo_s is None:
        if trace.slo_s is None:
            raise TraceError("the trace carries no deadlines; give an SLO (--slo-ms)")
        return trace.slo_s
    if not 0 < slo_s < float("inf"):
        raise TraceError(f"the SLO must be a finite time above 0, got {slo_s * 1e3:g} ms")
    return slo_s
