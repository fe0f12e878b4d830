"""A trace of prompts and outputs served as streams in virtual time: one report per policy.

Each row with its two token counts is a stream that gives exactly as many outputs as the trace says.
What was done to the trace to fit a small device, thinning and shorter lengths, is in its metadata
and so in every report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.streams.stream_scheduler import KV_TOKENS, MAX_RUNNING, StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_metrics import summarize_streams
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery
from traces.burstiness import trace_summary
from traces.simulation.capacity import Goal, find_capacity
from traces.simulation.stream_timeline import stream_timeline
from traces.spec.spec import parse_spec
from traces.trace import Trace, TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSlo:
    """When outputs are due: the first `ttft_s` after arrival, and so much more per prompt token.

    Each later one is due `tpot_s` after the one before.
    """

    ttft_s: float
    tpot_s: float
    ttft_per_token_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a trace's streams are served, whatever the policy."""

    slo: StreamSlo
    kv_tokens: int = KV_TOKENS
    max_running: int = MAX_RUNNING
    seed: int = 0


OnStreams = Callable[[str, list[StreamOutcome], list[Step]], None]
"""Called with a policy, the outcomes of its run and its iterations."""


def stream_queries(trace: Trace, slo: StreamSlo) -> list[StreamQuery]:
    """Return a stream for each row, in order of arrival.

    Raises TraceError for a trace that lacks token counts, or an SLO that can't be.
    """
    for name, value in (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s)):
        if not 0 < value < float("inf"):
            raise TraceError(f"the {name} must be a finite time above 0, got {value * 1e3:g} ms")
    prompts, outputs = trace.prompt_tokens, trace.output_tokens
    if prompts is None or outputs is None:
        raise TraceError(
            "the trace has no token counts, so it is no trace of streams; give one with the "
            "columns prompt_tokens and output_tokens, or lengths to draw (--lengths SPEC)"
        )
    unknown = np.flatnonzero((prompts < 1) | (outputs < 1))
    if unknown.size:
        i = int(unknown[0])
        raise TraceError(
            f"row {i} has {prompts[i]} prompt and {outputs[i]} output tokens, and {unknown.size} "
            "rows have less than one of either; leave them out",
            index=i,
        )
    classes = trace.query_class
    rows = zip(trace.arrival_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return [
        StreamQuery(
            i,
            arrival_s,
            prompt,
            output,
            arrival_s + slo.ttft_s + prompt * slo.ttft_per_token_s,
            slo.tpot_s,
            query_class=0 if classes is None else int(classes[i]),
        )
        for i, (arrival_s, prompt, output) in enumerate(rows)
    ]


def simulate_stream_policies(
    trace: Trace,
    profile: LatencyProfile,
    policy_names: Sequence[str],
    options: StreamOptions,
    *,
    on_end: Callable[[str, float], None] | None = None,
    on_streams: OnStreams | None = None,
) -> list[dict[str, Any]]:
    """Return one report per policy name; the same inputs give the same reports.

    Raises TraceError as `stream_queries` and for an unknown policy, ProfileError for a profile
    without iterations; nothing has run then.
    """
    costs = IterationCosts.of(profile)
    queries = stream_queries(trace, options.slo)
    if not queries:
        raise TraceError("the trace has no arrivals, there is nothing to simulate")
    schedulers = [(name, stream_scheduler(name, costs, options)) for name in policy_names]
    reports: list[dict[str, Any]] = []
    for name, scheduler in schedulers:
        started_s = time.perf_counter()
        steps: list[Step] = []
        outcomes = simulate_streams(
            queries, scheduler, on_step=lambda step, _, steps=steps: steps.append(step)
        )
        if on_end is not None:
            on_end(name, time.perf_counter() - started_s)
        if on_streams is not None:
            on_streams(name, outcomes, steps)
        slo = options.slo
        reports.append(
            summarize_streams(
                outcomes,
                policy=name,
                quality_kind=costs.quality_kind,
                duration_s=trace.duration_s,
                seed=options.seed,
                profile=profile.name,
                mode="simulated",
                trace=trace_summary(trace),
                slo_streams_ms={
                    "ttft": slo.ttft_s * 1e3,
                    "ttft_per_token": slo.ttft_per_token_s * 1e3,
                    "tpot": slo.tpot_s * 1e3,
                },
                settings=scheduler.settings,
            )
            | {"timeline": stream_timeline(outcomes, steps)}
        )
    return reports


def find_stream_capacities(
    trace: Trace,
    profile: LatencyProfile,
    policy_names: Sequence[str],
    goal: Goal,
    options: StreamOptions,
    *,
    on_end: Callable[[str, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Return one report per policy at the highest rate at which it meets the goal.

    With `capacity_qps`, `capacity_target` and `capacity_tried`, as `find_capacities`, and
    `load_curve`, what was found at each rate; of streams the attainment is the share on time.
    Raises what `simulate_stream_policies` raises.
    """
    key = "slo_attainment" if goal.key == "attainment" else goal.key
    found: list[dict[str, Any]] = []
    for name in policy_names:
        curve: list[dict[str, float]] = []

        def report_at(
            at: Trace, name: str = name, curve: list[dict[str, float]] = curve
        ) -> dict[str, Any]:
            report = simulate_stream_policies(at, profile, [name], options, on_end=on_end)[0]
            curve.append(
                {
                    "rate_qps": at.rate_qps,
                    "fluidity": report["streams"]["fluidity"],
                    "on_time": report["slo_attainment"],
                    "quality": report["streams"]["mean_quality"],
                }
            )
            return report

        capacity = find_capacity(trace, goal, lambda at: report_at(at)[key])
        rate_qps = capacity.rate_qps
        found.append(
            report_at(trace.rescale_rate(rate_qps) if rate_qps else trace)
            | {
                "capacity_qps": rate_qps,
                "capacity_target": f"{goal.key}={goal.least:g}",
                "capacity_tried": [list(pair) for pair in capacity.tried],
                "load_curve": curve,
            }
        )
    return found


def drawn_lengths(trace: Trace, lengths: Trace, rng: np.random.Generator) -> Trace:
    """Return `trace` with the token counts of rows drawn from `lengths`, pairs kept together.

    Raises TraceError for one without token counts.
    """
    if lengths.prompt_tokens is None or lengths.output_tokens is None or not len(lengths):
        raise TraceError("the trace to draw lengths from has no prompt_tokens and output_tokens")
    rows = rng.integers(0, len(lengths), len(trace))
    return trace.with_lengths(
        lengths.prompt_tokens[rows],
        lengths.output_tokens[rows],
        note=f"lengths drawn from {lengths.source or 'another trace'}",
    )


def fitted_trace(given: Mapping[str, Any]) -> Trace:
    """Return the trace with its lengths drawn, thinned and scaled as asked, in this order.

    `given` has the options `trace`, `seed`, `lengths`, `thin` and `length_scale`.
    """
    trace = parse_spec(given["trace"], seed=given["seed"])
    rng = np.random.default_rng(given["seed"])
    if given["lengths"] is not None:
        trace = drawn_lengths(trace, parse_spec(given["lengths"], seed=given["seed"]), rng)
    if given["thin"] != 1.0:
        trace = trace.thin(given["thin"], rng)
    if given["length_scale"] != 1.0:
        trace = trace.scale_lengths(given["length_scale"])
    return trace


def stream_scheduler(name: str, costs: IterationCosts, options: StreamOptions) -> StreamScheduler:
    """Return a new scheduler with the policy of that name. Raises TraceError for an unknown one."""
    try:
        policy = create_stream_policy(name, costs)
        return StreamScheduler(
            costs, policy, kv_tokens=options.kv_tokens, max_running=options.max_running
        )
    except ValueError as error:
        raise TraceError(str(error)) from None
