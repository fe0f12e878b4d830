"""A trace served in virtual time by several policies: one report each, comparable with replays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from slackfit.metrics import summarize
from slackfit.policies import create_policy
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.simulate import simulate
from traces.burstiness import trace_summary
from traces.progress import simulation_progress
from traces.trace import FloatArray, Trace, TraceError


def simulate_policies(
    trace: Trace,
    profile: LatencyProfile,
    policy_names: Sequence[str],
    *,
    slo_s: float | None = None,
    num_workers: int = 1,
    drop_hopeless: bool | None = None,
    seed: int = 0,
    on_end: Callable[[str, float], None] | None = None,
    **extra: Any,
) -> list[dict[str, Any]]:
    """Return one report per policy name; the same inputs give the same reports.

    `slo_s` None takes the trace's own deadlines (the report then names their median). `extra` keys
    go into every report. `on_end(policy, seconds)` hears what each run took, which is kept out of
    the reports.

    Raises:
        TraceError: no arrivals, no deadlines or an unknown policy; nothing has run then.
    """
    deadlines_s = _deadlines_s(trace, slo_s)
    policies = [_create_policy(name, profile) for name in policy_names]
    reports: list[dict[str, Any]] = []
    for policy in policies:
        started_s = time.perf_counter()
        with simulation_progress(policy.name) as progress:
            outcomes = simulate(
                trace.arrival_s,
                profile,
                policy,
                slo_s=deadlines_s,
                num_workers=num_workers,
                seed=seed,
                drop_hopeless=drop_hopeless,
                query_class=trace.query_class,
                progress=progress,
            )
        if on_end is not None:
            on_end(policy.name, time.perf_counter() - started_s)
        reports.append(
            summarize(
                outcomes,
                policy=policy.name,
                slo_s=float(np.median(deadlines_s)),
                duration_s=trace.duration_s,
                seed=seed,
                profile=profile.name,
                mode="simulated",
                trace=trace_summary(trace),
                **extra,
            )
        )
    return reports


def _create_policy(name: str, profile: LatencyProfile) -> Policy:
    try:
        return create_policy(name, profile)
    except ValueError as error:
        raise TraceError(str(error)) from None


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
