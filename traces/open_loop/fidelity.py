"""How well the simulator foretells a live run: the same trace, profile and policy, side by side.

The simulated server is the live one's scheduler with its settings, under virtual time. What a query
takes besides waiting and execution (the wire, parsing, the client) is a constant that the caller
measures on the idle server. Execution takes its profiled median, drawn longer by the profile's
upper quantiles. A second simulation makes the device as slow as the live one was at that moment, by
the ratio of measured to profiled batch time: what it explains is the profile's error, what it
leaves is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slackfit.metrics import summarize
from slackfit.outcome_columns import OutcomeColumns
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import DeviceModel, Slowdown
from slackfit.simulation.simulate import simulate
from traces.burstiness import trace_summary
from traces.open_loop.answers import Answer
from traces.open_loop.door import through_the_door
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.result import ReplayResult
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import with_figures
from traces.trace import Trace, TraceError

_FIGURES = ("p50_ms", "p95_ms", "slo_attainment", "mean_serving_accuracy")
_LEAST_SLO_S = 1e-9  # of a query that the door keeps beyond its deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveServer:
    """What the simulator must know of the server: its policy and settings, and the wire.

    An answer should leave the device `reply_allowance_s` before its deadline, but never earlier
    than `max_allowance`, a share of the SLO, asks for. `door_s` is what the door takes of one
    request before the scheduler sees it, one after the other; `wire_s` all that is beside that.
    """

    policy: str
    profile: LatencyProfile
    wire_s: float
    reply_allowance_s: float
    max_allowance: float
    max_queue: int | None
    drop_hopeless: bool | None
    triage: bool | None
    correct_latency: bool
    door_s: float = 0.0


def simulate_live(
    trace: Trace,
    server: LiveServer,
    options: ReplayOptions,
    *,
    slowdowns: Sequence[Slowdown] = (),
) -> list[Outcome]:
    """Return the outcomes of `trace` on a simulated `server`, as its client would judge them.

    `options` are those of the replay; its warm-up is served and left out. With `slowdowns` the
    device is as slow as they say; without, batch times are drawn from the profile's quantiles,
    where it has any beyond the median.

    Raises:
        TraceError: no deadlines, or a policy that the profile does not know.
    """
    slo_s, warmup_s = options.slo_s, options.warmup_s
    deadlines_s = trace.slo_s if slo_s is None else np.full(len(trace), slo_s)
    if deadlines_s is None:
        raise TraceError("the trace carries no deadlines; give an SLO (--slo-ms)")
    try:
        policy = create_policy(server.policy, server.profile)
    except ValueError as error:
        raise TraceError(f"the server's policy can't be simulated: {error}") from None
    scheduler = Scheduler(
        server.profile,
        policy,
        max_queue=server.max_queue,
        drop_hopeless=server.drop_hopeless,
        correct_latency=server.correct_latency,
        triage=server.triage,
    )
    allowance_s = np.minimum(server.reply_allowance_s, server.max_allowance * deadlines_s)
    arrival_s = trace.arrival_s
    seen_s = through_the_door(arrival_s, server.door_s) if server.door_s else arrival_s
    ended = simulate(
        seen_s,
        server.profile,
        policy,
        slo_s=np.maximum(deadlines_s - allowance_s - (seen_s - arrival_s), _LEAST_SLO_S),
        seed=options.seed,
        devices=DeviceModel(
            profiles=[server.profile],  # the scheduler's own is corrected as it goes
            noise=None if slowdowns else _noise(server.profile),
            events=slowdowns,
        ),
        query_class=trace.query_class,
        scheduler=scheduler,
    )
    sent = (o._replace(arrival_s=float(arrival_s[o.query_id])) for o in ended)
    return [
        _as_the_client_sees(o, float(deadlines_s[o.query_id]), server.wire_s, warmup_s)
        for o in sent
        if o.arrival_s >= warmup_s
    ]


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


def _noise(profile: LatencyProfile) -> LatencyProfile | None:
    has_tail = all(len(subnet.latency_s) > 1 for subnet in profile.subnets)
    return profile if has_tail else None


def _as_the_client_sees(outcome: Outcome, slo_s: float, wire_s: float, warmup_s: float) -> Outcome:
    finish_s = outcome.finish_s + wire_s
    deadline_s = outcome.arrival_s + slo_s
    status = outcome.status
    if status in ("on_time", "late"):
        status = "on_time" if finish_s <= deadline_s else "late"
    return outcome._replace(
        status=status,
        arrival_s=outcome.arrival_s - warmup_s,
        deadline_s=deadline_s - warmup_s,
        start_s=None if outcome.start_s is None else outcome.start_s - warmup_s,
        finish_s=finish_s - warmup_s,
    )
