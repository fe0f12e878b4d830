"""How well the simulator foretells a live run: the same trace, profile and policy, side by side.

The simulated server is that of `live_twin`. A second simulation makes the device as slow as the
live one was at that moment, by the ratio of measured to profiled batch time: what it explains is
the profile's error, what it leaves is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slackfit.metrics import summarize
from slackfit.outcome_columns import OutcomeColumns
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.simulation.devices import Slowdown
from traces.burstiness import trace_summary
from traces.open_loop.answers import Answer
from traces.open_loop.result import ReplayResult
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import with_figures
from traces.trace import Trace, TraceError

_FIGURES = ("p50_ms", "p95_ms", "slo_attainment", "mean_serving_accuracy")


def simulated_report(
    outcomes: Sequence[Outcome], live: dict[str, Any], trace: Trace
) -> dict[str, Any]:
    """Return the report of a simulated twin of the live run whose report is `live`."""
    report = summarize(
        outcomes,
        policy=live["policy"],
        slo_s=live["slo_ms"] * 1e-3,
        duration_s=live["duration_s"],
        seed=live["seed"],
        profile=live["profile"],
        label=f"{live['policy']}, simulated",
        mode="simulated",
        trace=trace_summary(trace),
        zoom=burst_zoom(outcomes, live["duration_s"]),
    )
    return with_figures(report, outcomes, trace)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Return P50 and P95 latency (ms, of executed queries), attainment and served accuracy."""
    columns = OutcomeColumns.of(outcomes).per_sample()
    latency_s, on_time = columns.latency_s[columns.executed], columns.accuracy[columns.on_time]
    p50, p95 = np.quantile(latency_s, [0.5, 0.95]) * 1e3 if latency_s.size else (None, None)
    values = (
        p50,
        p95,
        on_time.size / len(columns) if len(columns) else None,
        float(on_time.mean()) if on_time.size else None,
    )
    return {n: None if v is None else float(v) for n, v in zip(_FIGURES, values, strict=True)}


def fidelity(live: Sequence[Outcome], simulated: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Return live and simulated figures and the error of the simulation.

    The error of a latency is relative to the live one, that of a fraction is their difference.
    """
    table: dict[str, dict[str, Any]] = {}
    ours, theirs = figures(live), figures(simulated)
    for name in _FIGURES:
        measured, predicted = ours[name], theirs[name]
        error = None
        if measured is not None and predicted is not None:
            error = (predicted - measured) / (measured if name.endswith("_ms") else 1.0)
        table[name] = {"live": measured, "simulated": predicted, "error": error}
    return table


def batch_slowdowns(result: ReplayResult, profile: LatencyProfile, wire_s: float) -> list[Slowdown]:
    """Return, for each batch that the client saw, when it started and how slow it was.

    The factor is measured over profiled median execution time; times are on the trace's axis. A
    batch starts where its first member's wait in the queue ends, half the wire after its send.
    """
    batches: dict[object, Slowdown] = {}
    known = set(profile.subnet_ids)
    for answer in result.answers:
        reply = answer.reply
        size = min(reply.batch_size, profile.max_batch_size)
        if reply.status == "ok" and reply.subnet_id in known and size and reply.execution_s > 0:
            key = reply.batch_id or (reply.subnet_id, size, reply.execution_s)
            start_s = answer.sent_s + wire_s / 2 + reply.queue_s
            factor = reply.execution_s / profile.latency_s(reply.subnet_id, size)
            batches.setdefault(key, Slowdown(start_s, 0, factor))
    return sorted(batches.values())


def wire_s(answers: Sequence[Answer]) -> float:
    """Return the median of what queries on an idle server took besides waiting and execution (s).

    Raises:
        TraceError: no query was answered.
    """
    over = [
        a.finish_s - a.sent_s - a.reply.queue_s - a.reply.execution_s
        for a in answers
        if a.reply.status == "ok"
    ]
    if not over:
        raise TraceError("the server answered none of the queries that measure its wire")
    return max(float(np.median(over)), 0.0)
