"""The verb `simulate`: a trace served in virtual time, by one or several policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from traces.commands.stream_options import (
    KvTokensOption,
    LengthScaleOption,
    LengthsOption,
    MaxRunningOption,
    ThinOption,
    TpotOption,
    TtftOption,
    TtftPerTokenOption,
)

OUTPUTS = ("json_out", "html_out", "chrome_out")
"""Parameters that say where to write; the same report is written everywhere."""

ProfileOption = Annotated[Path, typer.Option(metavar="FILE", help="Latency profile (JSON).")]
OverheadOption = Annotated[
    float, typer.Option("--overhead-ms", min=0, help="Added to every batch's profiled latency.")
]
DenseOption = Annotated[
    int, typer.Option("--subnets", min=0, help="Interpolate subnets up to this count; 0: do not.")
]
SloOption = Annotated[
    float | None, typer.Option(help="Deadline of each query; default: the trace's own.")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of reports.")
]


def simulate_command(
    context: typer.Context,
    profile: ProfileOption,
    trace: Annotated[str, typer.Option(metavar="SPEC", help="Trace file or generator.")],
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="One run per policy; NAME@key=value gives parameters. Default: slackfit, "
            "slackwidth for streams.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Devices; with --replicas of each.")] = 1,
    replicas: Annotated[
        int, typer.Option(min=1, help="Servers, each with a queue and a scheduler of its own.")
    ] = 1,
    routing: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="How queries get to replicas: one-queue, round-robin (default), power-of-two, "
            "predicted-finish, sticky:CONNECTIONS, client[:PROCESSES].",
        ),
    ] = None,
    slo_ms: SloOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.", min=0)] = 0,
    overhead_ms: OverheadOption = 0.0,
    subnets: DenseOption = 0,
    drop_hopeless: Annotated[
        bool | None,
        typer.Option(
            "--drop-hopeless/--no-drop-hopeless",
            help="Drop queries that no subnet can serve in time; default: as the policy says.",
        ),
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="WORKER@S[,...]",
            help="Device events: 3@12 fails worker 3 after 12 s, 1.5x0@4 slows worker 0.",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[,FILE...]",
            help="A profile per worker: what batches take there; --profile stays the forecast.",
        ),
    ] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Draw latencies from the profile's quantiles.")
    ] = False,
    residency: Annotated[
        str | None,
        typer.Option(
            metavar="value|sushisched|static",
            help="What devices keep resident; needs a profile with residency tables.",
        ),
    ] = None,
    cache_mib: Annotated[
        float | None,
        typer.Option(min=0, help="Room for resident subgraphs; default: for the largest one."),
    ] = None,
    bound: Annotated[
        bool, typer.Option("--bound", help="Add an upper bound of the utility to each report.")
    ] = False,
    capacity: Annotated[
        str | None,
        typer.Option(
            "--find-capacity",
            metavar="KEY=FRACTION",
            help="Search the highest rate with, say, attainment=0.999; reports are of that rate.",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Flat memory for long generators; reports lack time series."),
    ] = False,
    ttft_ms: TtftOption = None,
    tpot_ms: TpotOption = None,
    ttft_per_token_ms: TtftPerTokenOption = 0.0,
    thin: ThinOption = 1.0,
    length_scale: LengthScaleOption = 1.0,
    lengths: LengthsOption = None,
    kv_tokens: KvTokensOption = None,
    max_running: MaxRunningOption = None,
    json_out: JsonOption = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report page.")
    ] = None,
    chrome_out: Annotated[
        Path | None,
        typer.Option("--chrome", metavar="FILE", help="Write the schedule as a Chrome trace."),
    ] = None,
) -> None:
    """Serve a trace in virtual time, with the very scheduler that the server runs.

    A profile with the cost of iterations makes it a simulation of streams.
    """
    from traces.commands.command_line import command_line
    from traces.commands.output import finish, trace_errors

    with trace_errors():
        from slackfit.output_files import check_outputs, write_each
        from slackfit.profile import LatencyProfile
        from slackfit.streams.iteration_cost import has_iterations
        from traces.commands.simulate_request import check_streamed, read_request
        from traces.commands.simulate_streams import check_stream_options, serve_streams
        from traces.report.chrome_trace import ChromeTrace

        check_streamed(context.params)
        check_outputs(json_out, html_out, chrome_out)
        given = LatencyProfile.load(profile)
        check_stream_options(given, context)
        if has_iterations(given):
            serve_streams(context, given)
            return
        chrome = None if chrome_out is None else ChromeTrace()
        request = read_request(given, context.params)
        reports = request.run(_tell_end, None if chrome is None else chrome.record)
        config = {"workers": workers, "slo_ms": slo_ms, "drop_hopeless": drop_hopeless}
        command = command_line(context, "supernet simulate", without=OUTPUTS)
        reports = [{**report, "command": command, "config": config} for report in reports]
        write_each(
            lambda: finish(
                reports, json_out=json_out, html_out=html_out, title="Simulation report"
            ),
            lambda: None if chrome is None or chrome_out is None else chrome.write(chrome_out),
        )


def _tell_end(policy: str, wall_s: float, why: str) -> None:
    """Say how long a policy took, and by which path."""
    path = f"in Python: {why}" if why else "compiled"
    typer.echo(f"{policy}: {wall_s:.2f} s ({path})", err=True)
