"""`simulate` with a profile that tells the cost of iterations: a trace served as streams."""

from __future__ import annotations

import typer

from slackfit.profile import LatencyProfile
from slackfit.scheduling.streams.stream_scheduler import KV_TOKENS, MAX_RUNNING
from slackfit.streams.iteration_cost import has_iterations
from traces.commands.command_line import command_line
from traces.commands.output import finish
from traces.commands.stream_options import BATCH_OPTIONS, STREAM_OPTIONS
from traces.simulation.capacity import parse_goal
from traces.simulation.stream_simulation import (
    StreamOptions,
    StreamSlo,
    find_stream_capacities,
    fitted_trace,
    simulate_stream_policies,
)
from traces.trace import TraceError

OUTPUTS = ("json_out", "html_out", "chrome_out")


def check_stream_options(profile: LatencyProfile, context: typer.Context) -> None:
    """Raise TraceError for options that the profile's kind of simulation does not have."""
    given = [
        name
        for name in (*STREAM_OPTIONS, *BATCH_OPTIONS)
        if (source := context.get_parameter_source(name)) is not None
        and source.name not in ("DEFAULT", "DEFAULT_MAP")
    ]
    is_streams = has_iterations(profile)
    wrong = [name for name in given if name in (BATCH_OPTIONS if is_streams else STREAM_OPTIONS)]
    if wrong:
        kind = (
            "has iterations, so streams are" if is_streams else "has no iterations, so batches are"
        )
        raise TraceError(
            f"profile {profile.name!r} {kind} simulated, without "
            f"{', '.join('--' + _option(name) for name in wrong)}"
        )
    if is_streams and context.params["workers"] != 1:
        raise TraceError("streams are simulated on one device; thin the trace for several")
    if is_streams and not {"ttft_ms", "tpot_ms"} <= set(given):
        raise TraceError(
            f"profile {profile.name!r} has iterations, so streams are simulated: say when their "
            "outputs are due with --ttft-ms and --tpot-ms"
        )


def serve_streams(context: typer.Context, profile: LatencyProfile) -> None:
    """Run what the command's parameters say, print and write the reports.

    Raises TraceError and ProfileError for what can't be.
    """
    given = context.params
    options = StreamOptions(
        slo=StreamSlo(
            ttft_s=given["ttft_ms"] / 1e3,
            tpot_s=given["tpot_ms"] / 1e3,
            ttft_per_token_s=given["ttft_per_token_ms"] / 1e3,
        ),
        kv_tokens=given["kv_tokens"] or KV_TOKENS,
        max_running=given["max_running"] or MAX_RUNNING,
        seed=given["seed"],
    )
    trace = fitted_trace(given)
    names = [name.strip() for name in (given["policy"] or "slackwidth").split(",")]

    def on_end(policy: str, wall_s: float) -> None:
        typer.echo(f"{policy}: {wall_s:.2f} s", err=True)

    if given["capacity"] is None:
        reports = simulate_stream_policies(trace, profile, names, options, on_end=on_end)
    else:
        goal = parse_goal(given["capacity"])
        reports = find_stream_capacities(trace, profile, names, goal, options, on_end=on_end)
    config = {name: given[name] for name in STREAM_OPTIONS if given[name] is not None}
    command = command_line(context, "supernet simulate", without=OUTPUTS)
    finish(
        [{**report, "command": command, "config": config} for report in reports],
        json_out=given["json_out"],
        html_out=given["html_out"],
        title="Simulation report",
    )


def _option(name: str) -> str:
    return name.removesuffix("_out").replace("_", "-")
