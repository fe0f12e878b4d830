"""`replay` of streams: a trace of prompts and outputs against any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from serve.client.streams.openai_target import OpenAITarget
from slackfit.output_files import check_outputs, write_each
from slackfit.streams.stream_metrics import summarize_streams
from slackfit.streams.stream_query import StreamQuery
from traces.burstiness import trace_summary
from traces.commands.command_line import command_line
from traces.open_loop.progress import replay_progress
from traces.open_loop.sender import Progress
from traces.open_loop.stream_chunks import write_chunks
from traces.open_loop.stream_replay import SeenStream, as_client_saw, replay_streams
from traces.open_loop.stream_target import StreamModel
from traces.report.report import write_report_html, write_report_json
from traces.simulation.stream_simulation import StreamSlo, fitted_trace, stream_queries
from traces.trace import Trace, TraceError

OUTPUTS = ("report.json", "report.html", "chunks.parquet")
_QUERIES_ONLY = {
    "slo_ms": "slo-ms", "data": "data", "retries": "retries", "also_simulate": "also-simulate",
    "profile": "profile", "repeat": "repeat", "processes": "processes", "warmup_s": "warmup-s",
}  # fmt: skip
_MOST_LAG = 0.1  # of the time to a first token


def replay_as_streams(context: typer.Context) -> None:
    """Send the trace of `context` as streams; write report.json, report.html, chunks.parquet.

    Raises TraceError and ClientError for what can't be.
    """
    given = context.params
    _check(given, context)
    out: Path = given["out"]
    check_outputs(*(out / name for name in OUTPUTS))
    slo = StreamSlo(
        ttft_s=given["ttft_ms"] / 1e3,
        tpot_s=given["tpot_ms"] / 1e3,
        ttft_per_token_s=given["ttft_per_token_ms"] / 1e3,
    )
    trace = fitted_trace(given)
    queries = stream_queries(trace, slo)
    if not queries:
        raise TraceError("the trace has no arrivals, there is nothing to replay")
    started_s = time.monotonic()
    with replay_progress("replay") as show:
        model, seen = asyncio.run(
            send_streams(
                queries,
                given["url"],
                model=given["model"],
                seed=given["seed"],
                timeout_s=given["timeout_s"],
                progress=show,
            )
        )
    report = stream_report(
        seen,
        model,
        trace,
        slo,
        label=given["policy"],
        seed=given["seed"],
        wall_s=time.monotonic() - started_s,
        is_partial=len(seen) < len(queries),
    )
    report |= {"command": command_line(context, "supernet replay"), "url": given["url"]}
    for line in summary_lines(report):
        typer.echo(line)
    write_each(
        lambda: write_report_json(out / OUTPUTS[0], [report]),
        lambda: write_report_html(out / OUTPUTS[1], [report], title="Replay report"),
        lambda: write_chunks(out / OUTPUTS[2], seen),
    )
    typer.echo(f"report: {out / OUTPUTS[1]}", err=True)


async def send_streams(
    queries: Sequence[StreamQuery],
    url: str,
    *,
    model: str | None = None,
    seed: int = 0,
    timeout_s: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[StreamModel, list[SeenStream]]:
    """Send streams to a server; return what it says of its model, and what was seen.

    Raises ClientError where it can't be reached.
    """
    target = await OpenAITarget.open(url, model)
    try:
        seen = await replay_streams(
            queries, target, seed=seed, timeout_s=timeout_s, progress=progress
        )
        return target.model, seen
    finally:
        await target.close()


def stream_report(
    seen: Sequence[SeenStream],
    model: StreamModel,
    trace: Trace,
    slo: StreamSlo,
    *,
    label: str | None = None,
    seed: int = 0,
    wall_s: float | None = None,
    is_partial: bool = False,
) -> dict[str, Any]:
    """Return the report of a replay, judged by the client's times from the intended send."""
    outcomes = [as_client_saw(stream, model) for stream in seen]
    told = [stream.end.fluidity for stream in seen if stream.end.fluidity is not None]
    lags_s = np.array([stream.lag_s for stream in seen]) if seen else np.zeros(1)
    worst_s = float(np.percentile(lags_s, 99))
    limit_s = _MOST_LAG * slo.ttft_s
    invalid = ""
    if worst_s > limit_s:
        invalid = (
            f"the generator sent {worst_s * 1e3:.1f} ms late (p99), allowed {limit_s * 1e3:.1f} ms"
        )
    report = summarize_streams(
        outcomes,
        policy=model.policy or model.name,
        quality_kind=model.quality_kind,
        duration_s=trace.duration_s,
        seed=seed,
        profile=model.name,
        wall_s=wall_s,
        mode="live",
        trace=trace_summary(trace),
        slo_streams_ms={
            "ttft": slo.ttft_s * 1e3,
            "ttft_per_token": slo.ttft_per_token_s * 1e3,
            "tpot": slo.tpot_s * 1e3,
        },
        generator_lag_ms={
            name: float(np.percentile(lags_s, share)) * 1e3
            for name, share in (("p50", 50), ("p99", 99), ("max", 100))
        },
        invalid_reason=invalid or None,
        is_partial=is_partial,
    )
    report["streams"]["server_fluidity"] = sum(told) / len(told) if told else None
    if label is not None:
        report["label"] = label
    return report


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what a replay of streams prints."""
    streams, outcomes = report["streams"], report["outcomes"]
    first, gap = streams["ttft_ms"], streams["gap_ms"]
    ends = ", ".join(f"{count} {name}" for name, count in outcomes.items() if count)
    lines = [
        f"{report.get('label') or report['policy']}: {report['num_queries']} streams: {ends}",
        f"  on time {report['slo_attainment']:.1%}, fluidity {streams['fluidity']:.3f} "
        f"(by quality {streams['weighted_fluidity']:.3f}), mean quality "
        f"{streams['mean_quality']:.4f} ({streams['quality_kind']})",
        f"  first token p50 {_ms(first['p50'])}, p95 {_ms(first['p95'])}; gap p50 "
        f"{_ms(gap['p50'])}, p99 {_ms(gap['p99'])}; {streams['outputs_per_s']:.1f} tokens/s",
    ]
    if streams["server_fluidity"] is not None:
        lines.append(f"  fluidity by the server's own times {streams['server_fluidity']:.3f}")
    lag = report["generator_lag_ms"]
    lines.append(f"  generator: lag p50 {lag['p50']:.2f}, p99 {lag['p99']:.2f} ms")
    if report["reasons"]:
        why = ", ".join(f"{name} {count}" for name, count in report["reasons"].items())
        lines.append(f"  not whole: {why}")
    if report["invalid_reason"]:
        lines.append(f"INVALID: {report['invalid_reason']}")
    return lines


def _check(given: Mapping[str, Any], context: typer.Context) -> None:
    if given["ttft_ms"] is None or given["tpot_ms"] is None:
        raise TraceError("streams have two due times: give --ttft-ms and --tpot-ms")
    wrong = [
        f"--{option}"
        for name, option in _QUERIES_ONLY.items()
        if (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if wrong:
        raise TraceError(
            f"{', '.join(wrong)}: of queries, not of streams (--ttft-ms); leave it out"
        )


def _ms(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.0f} ms"
