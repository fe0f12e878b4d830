"""The verb `simulate`: a trace served in virtual time, by one or several policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from traces.commands.simulate_options import (
    BoundOption,
    CacheOption,
    CapacityOption,
    ChromeOption,
    DenseOption,
    DevicesOption,
    DropOption,
    EventsOption,
    HtmlOption,
    JsonOption,
    NoiseOption,
    OverheadOption,
    PolicyOption,
    ProfileOption,
    ReplicasOption,
    ResidencyOption,
    RoutingOption,
    SeedOption,
    SloOption,
    StreamedOption,
    TraceOption,
    WorkersOption,
)
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

if TYPE_CHECKING:
    from slackfit.profile import LatencyProfile

OUTPUTS = ("json_out", "html_out", "chrome_out")
"""Parameters that say where to write; the same report is written everywhere."""


def simulate_command(
    context: typer.Context,
    profile: ProfileOption,
    trace: TraceOption,
    policy: PolicyOption = None,
    workers: WorkersOption = 1,
    replicas: ReplicasOption = 1,
    routing: RoutingOption = None,
    slo_ms: SloOption = None,
    seed: SeedOption = 0,
    overhead_ms: OverheadOption = 0.0,
    subnets: DenseOption = 0,
    drop_hopeless: DropOption = None,
    events: EventsOption = None,
    devices: DevicesOption = None,
    noise: NoiseOption = False,
    residency: ResidencyOption = None,
    cache_mib: CacheOption = None,
    bound: BoundOption = False,
    capacity: CapacityOption = None,
    stream: StreamedOption = False,
    ttft_ms: TtftOption = None,
    tpot_ms: TpotOption = None,
    ttft_per_token_ms: TtftPerTokenOption = 0.0,
    thin: ThinOption = 1.0,
    length_scale: LengthScaleOption = 1.0,
    lengths: LengthsOption = None,
    kv_tokens: KvTokensOption = None,
    max_running: MaxRunningOption = None,
    json_out: JsonOption = None,
    html_out: HtmlOption = None,
    chrome_out: ChromeOption = None,
) -> None:
    """Serve a trace in virtual time, with the very scheduler that the server runs.

    A profile with the cost of iterations makes it a simulation of streams.
    """
    from traces.commands.output import trace_errors

    with trace_errors():
        from slackfit.output_files import check_outputs
        from slackfit.profile import LatencyProfile
        from slackfit.streams.iteration_cost import has_iterations
        from traces.commands.simulate_request import check_streamed
        from traces.commands.simulate_streams import check_stream_options, serve_streams

        check_streamed(context.params)
        check_outputs(json_out, html_out, chrome_out)
        table = LatencyProfile.load(profile)
        check_stream_options(table, context)
        if has_iterations(table):
            serve_streams(context, table)
        else:
            _serve_batches(context, table)


def _serve_batches(context: typer.Context, profile: LatencyProfile) -> None:
    """Serve the trace of a command's parameters; write and tell the reports."""
    from slackfit.output_files import write_each
    from traces.commands.command_line import command_line
    from traces.commands.output import finish
    from traces.commands.simulate_request import read_request
    from traces.report.chrome_trace import ChromeTrace

    given = context.params
    json_out, html_out, chrome_out = (given[name] for name in OUTPUTS)
    chrome = None if chrome_out is None else ChromeTrace()
    request = read_request(profile, given)
    reports = request.run(_tell_end, None if chrome is None else chrome.record)
    about = {
        "command": command_line(context, "supernet simulate", without=OUTPUTS),
        "config": {name: given[name] for name in ("workers", "slo_ms", "drop_hopeless")},
    }
    reports = [report | about for report in reports]
    write_each(
        lambda: finish(reports, json_out=json_out, html_out=html_out, title="Simulation report"),
        lambda: None if chrome is None or chrome_out is None else chrome.write(chrome_out),
    )


def _tell_end(policy: str, wall_s: float, why: str) -> None:
    """Say how long a policy took, and by which path."""
    path = f"in Python: {why}" if why else "compiled"
    typer.echo(f"{policy}: {wall_s:.2f} s ({path})", err=True)
