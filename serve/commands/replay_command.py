"""`supernet replay`: an open-loop trace against a live server, and the report of what came back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from serve.commands.replay_options import (
    AlsoSimulateOption,
    DataOption,
    LabelOption,
    MaxLagOption,
    ModelOption,
    OutOption,
    ProcessesOption,
    RepeatOption,
    RetriesOption,
    ServedProfileOption,
    TimeoutOption,
    UrlOption,
    WarmupOption,
)
from slackfit.plain_console import plain_console
from traces.commands.simulate_options import SeedOption, SloOption, TraceOption
from traces.commands.stream_options import (
    LengthScaleOption,
    LengthsOption,
    ThinOption,
    TpotOption,
    TtftOption,
    TtftPerTokenOption,
)

if TYPE_CHECKING:
    from serve.commands.live_replay import LiveReplay
    from traces.open_loop.result import ReplayResult
    from traces.trace import Trace

_OUTPUTS = ("report.json", "report.html", "timeline.parquet")
_INTERRUPTED = 130


def replay(
    context: typer.Context,
    trace: TraceOption,
    url: UrlOption,
    out: OutOption,
    slo_ms: SloOption = None,
    data: DataOption = None,
    policy: LabelOption = None,
    model: ModelOption = None,
    seed: SeedOption = 0,
    warmup_s: WarmupOption = 0.0,
    timeout_s: TimeoutOption = 30.0,
    retries: RetriesOption = 0,
    max_lag_ms: MaxLagOption = None,
    processes: ProcessesOption = None,
    also_simulate: AlsoSimulateOption = False,
    profile: ServedProfileOption = None,
    repeat: RepeatOption = 1,
    ttft_ms: TtftOption = None,
    tpot_ms: TpotOption = None,
    ttft_per_token_ms: TtftPerTokenOption = 0.0,
    thin: ThinOption = 1.0,
    length_scale: LengthScaleOption = 1.0,
    lengths: LengthsOption = None,
) -> None:
    """Replay a trace against a live server; write report.json, report.html and timeline.parquet.

    With --ttft-ms and --tpot-ms each row is a stream, for any OpenAI-compatible server; then
    chunks.parquet holds every chunk instead.

    Ctrl-C ends the run early with a valid report of what was sent until then.
    """
    from serve.client.rest_answers import ClientError
    from traces.commands.output import trace_errors
    from traces.open_loop.sender_processes import SenderError

    with trace_errors(ClientError, SenderError):
        if ttft_ms is not None or tpot_ms is not None:
            from serve.commands.stream_replay import replay_as_streams

            replay_as_streams(context)
            return
        was_interrupted = _replay_queries(context)
    if was_interrupted:
        raise typer.Exit(_INTERRUPTED)


def _replay_queries(context: typer.Context) -> bool:
    """Replay what a command's parameters say, and write it; return whether it was interrupted."""
    from slackfit.output_files import check_outputs
    from traces.commands.command_line import command_line
    from traces.open_loop.progress import replay_progress
    from traces.trace import TraceError

    given = context.params
    out, repeat = given["out"], given["repeat"]
    if given["also_simulate"] != (given["profile"] is not None):
        raise TraceError("--also-simulate and --profile FILE go together")
    timelines = (_timeline_name(number) for number in range(2, repeat + 1))
    check_outputs(*(out / name for name in (*_OUTPUTS, *timelines)))
    live = _live_replay(given)
    with replay_progress("replay") as show:
        runs = asyncio.run(live.run_repeatedly(repeat, show))
    command = command_line(context, "supernet replay")
    reports = [{**r, "command": command} for found, _ in runs for r in found]
    write_run(reports, live.trace, runs[0][1], out)
    _write_repeats(live.trace, [result for _, result in runs], reports, out)
    return runs[-1][1].is_partial


def _live_replay(given: Mapping[str, Any]) -> LiveReplay:
    """Return what the command's parameters, by name, ask for.

    Raises TraceError and ProfileError for what can't be, FileNotFoundError.
    """
    from serve.commands.live_replay import LiveReplay
    from slackfit.profile import LatencyProfile
    from traces.open_loop.replay_options import ReplayOptions
    from traces.spec.spec import parse_spec

    slo_ms, max_lag_ms, profile = given["slo_ms"], given["max_lag_ms"], given["profile"]
    return LiveReplay(
        trace=parse_spec(given["trace"], seed=given["seed"]),
        url=given["url"],
        options=ReplayOptions(
            slo_s=None if slo_ms is None else slo_ms * 1e-3,
            seed=given["seed"],
            timeout_s=given["timeout_s"],
            warmup_s=given["warmup_s"],
            max_lag_s=None if max_lag_ms is None else max_lag_ms * 1e-3,
            max_retries=given["retries"],
        ),
        model=given["model"],
        label=given["policy"],
        data=given["data"],
        num_processes=given["processes"],
        twin=None if profile is None else LatencyProfile.load(profile),
    )


def write_run(reports: list[dict[str, Any]], trace: Trace, result: ReplayResult, out: Path) -> None:
    """Write report.json, report.html and timeline.parquet into a folder; print the figures."""
    from slackfit.output_files import write_each
    from traces.open_loop.timeline import write_timeline
    from traces.report.report import write_report_html, write_report_json
    from traces.report.table import report_table

    plain_console(width=None if sys.stdout.isatty() else 140).print(report_table(reports))
    for line in _about_generator(reports[0]) + _about_fidelity(reports[0]):
        typer.echo(line)
    report, page, timeline = (out / name for name in _OUTPUTS)
    write_each(
        lambda: write_report_json(report, reports),
        lambda: write_timeline(timeline, trace, result),
        lambda: write_report_html(page, reports, title="Replay report"),
    )
    typer.echo(f"report: {out / 'report.html'}", err=True)


def _write_repeats(
    trace: Trace, results: list[ReplayResult], reports: list[dict[str, Any]], out: Path
) -> None:
    """Write the timelines of the second run and on; say how far the valid runs vary."""
    from traces.open_loop.timeline import write_timeline
    from traces.report.group_tables import repeats

    for number, result in enumerate(results[1:], start=2):
        write_timeline(out / _timeline_name(number), trace, result)
    for row in repeats(reports):
        named = f"{row['label']}: {row['figure'].lower()} over {row['count']} runs"
        typer.echo(f"{named}: {row['mean']} ({row['range']})")


def _timeline_name(number: int) -> str:
    return f"timeline-{number}.parquet"


def _about_generator(report: Mapping[str, Any]) -> list[str]:
    lag, capacity = report["generator_lag_ms"], report["generator_capacity_qps"]
    if lag["p99"] is None:
        return ["generator: nothing was sent"]
    line = f"generator: lag p50 {lag['p50']:.2f}, p99 {lag['p99']:.2f}, max {lag['max']:.2f} ms"
    if capacity is not None:
        line += f"; {report['generator_processes']} sending could do {capacity:,.0f} queries/s"
    loop = report.get("generator_loop_lag_ms") or {}
    if loop.get("p99") is not None:
        line += f"; its event loop is late by p99 {loop['p99']:.2f} ms"
    invalid = report["invalid_reason"]
    return [line, *([f"INVALID: {invalid}"] if invalid else [])]


def _about_fidelity(report: Mapping[str, Any]) -> list[str]:
    """Say the simulation's errors in lines, one per figure."""
    lines: list[str] = []
    if "fidelity" in report and report["config"]["server_settings"] is None:
        lines.append("note: the server does not say its settings; simulated with the defaults")
    for key, title in (
        ("fidelity", "simulated from the profile"),
        ("fidelity_at_live_speed", "simulated with a device as slow as the live one was"),
    ):
        if key not in report:
            continue
        lines.append(f"{title}:")
        for name, row in report[key].items():
            if row["error"] is None:
                lines.append(f"  {name:22} live {row['live']}, simulated {row['simulated']}")
                continue
            is_latency = name.endswith("_ms")
            error = f"{row['error']:+.1%}" if is_latency else f"{row['error']:+.4f}"
            digits = ".2f" if is_latency else ".4f"
            shown = f"live {row['live']:{digits}}, simulated {row['simulated']:{digits}}"
            lines.append(f"  {name:22} {shown}, error {error}")
    return lines
