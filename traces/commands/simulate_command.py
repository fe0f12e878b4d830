"""The verb `simulate`: a trace served in virtual time, by one or several policies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from slackfit.profile import LatencyProfile
    from slackfit.simulation.device_residency import SimulatedResidency
    from slackfit.simulation.devices import Failure, Slowdown
    from slackfit.simulation.routing import Routing
    from traces.simulation.simulation import OnOutcomes, SimulationOptions

_EVENT = re.compile(r"(?:(?P<factor>[0-9.]+)x)?(?P<worker>\d+)@(?P<at>[0-9.]+)")

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
        from slackfit.simulation.devices import DeviceModel
        from slackfit.streams.iteration_cost import has_iterations
        from traces.commands.simulate_streams import check_stream_options, serve_streams
        from traces.report.chrome_trace import ChromeTrace
        from traces.simulation.simulation import SimulationOptions

        _check_stream(context.params)
        check_outputs(json_out, html_out, chrome_out)
        given = LatencyProfile.load(profile)
        check_stream_options(given, context)
        if has_iterations(given):
            serve_streams(context, given)
            return
        names = [name.strip() for name in (policy or "slackfit").split(",")]
        table = derived(given, overhead_ms, subnets)
        chrome = None if chrome_out is None else ChromeTrace()
        model = DeviceModel(
            noise=table if noise else None,
            profiles=None
            if devices is None
            else [
                derived(LatencyProfile.load(file.strip()), overhead_ms, subnets)
                for file in devices.split(",")
            ],
            residency=_residency(table, residency, cache_mib, workers * replicas),
            events=_events(events),
        )
        options = SimulationOptions(
            slo_s=None if slo_ms is None else slo_ms / 1e3,
            num_workers=workers,
            num_replicas=replicas,
            routing=_routing(routing, replicas),
            drop_hopeless=drop_hopeless,
            seed=seed,
            devices=model,
            with_bound=bound,
        )
        reports = _reports(
            trace,
            table,
            names,
            options,
            stream=stream,
            capacity=capacity,
            on_outcomes=None if chrome is None else chrome.record,
        )
        config = {"workers": workers, "slo_ms": slo_ms, "drop_hopeless": drop_hopeless}
        command = command_line(context, "supernet simulate", without=OUTPUTS)
        reports = [{**report, "command": command, "config": config} for report in reports]
        write_each(
            lambda: finish(
                reports, json_out=json_out, html_out=html_out, title="Simulation report"
            ),
            lambda: None if chrome is None or chrome_out is None else chrome.write(chrome_out),
        )


def _reports(
    spec: str,
    profile: LatencyProfile,
    names: list[str],
    options: SimulationOptions,
    *,
    stream: bool,
    capacity: str | None,
    on_outcomes: OnOutcomes | None,
) -> list[dict[str, Any]]:
    """Run the kind of simulation that the options ask for; return a report per policy."""
    from traces.simulation.capacity import parse_goal
    from traces.simulation.simulation import find_capacities, simulate_policies, stream_policies
    from traces.spec.spec import parse_spec

    def on_end(policy: str, wall_s: float, why: str) -> None:
        path = f"in Python: {why}" if why else "compiled"
        typer.echo(f"{policy}: {wall_s:.2f} s ({path})", err=True)

    if stream:
        return stream_policies(spec, profile, names, options, on_end=on_end)
    goal = None if capacity is None else parse_goal(capacity)
    trace = parse_spec(spec, seed=options.seed)
    if goal is None:
        return simulate_policies(
            trace, profile, names, options, on_end=on_end, on_outcomes=on_outcomes
        )
    return find_capacities(
        trace, profile, names, goal, options, on_end=on_end, on_outcomes=on_outcomes
    )


def derived(profile: LatencyProfile, overhead_ms: float, num_subnets: int) -> LatencyProfile:
    """Return the profile with interpolated subnets and overhead, as the options ask."""
    from slackfit.derive import densified, with_overhead
    from traces.trace import TraceError

    try:
        dense = densified(profile, num_subnets) if num_subnets else profile
        return with_overhead(dense, overhead_ms / 1e3)
    except ValueError as error:
        raise TraceError(str(error)) from None


def _check_stream(given: Mapping[str, Any]) -> None:
    """Raise TraceError for options that need what a streamed run does not keep."""
    from traces.trace import TraceError

    named = {
        "--noise": "noise",
        "--devices": "devices",
        "--residency": "residency",
        "--bound": "bound",
        "--find-capacity": "capacity",
        "--html": "html_out",
        "--chrome": "chrome_out",
        "--routing": "routing",
    }
    refused = [option for option, key in named.items() if given[key]]
    refused += ["--replicas"] if given["replicas"] > 1 else []
    if given["stream"] and refused:
        raise TraceError(f"--stream goes without {', '.join(refused)}")


def _routing(text: str | None, num_replicas: int) -> Routing:
    """Return the routing that an option names. Raises TraceError for anything else."""
    from slackfit.simulation.routing import ONE_QUEUE, parse_routing
    from traces.trace import TraceError

    if num_replicas == 1:
        if text is not None:
            raise TraceError("--routing goes with --replicas N, 2 or more")
        return ONE_QUEUE
    try:
        return parse_routing(text or "round-robin")
    except ValueError as error:
        raise TraceError(str(error)) from None


def _residency(
    profile: LatencyProfile, policy: str | None, cache_mib: float | None, workers: int
) -> SimulatedResidency | None:
    """Return the devices' residency. Raises TraceError, ProfileError: it can not be."""
    from slackfit.simulation.device_residency import SimulatedResidency
    from traces.trace import TraceError

    if policy is None:
        if cache_mib is not None:
            raise TraceError("--cache-mib goes with --residency")
        return None
    budget = None if cache_mib is None else int(cache_mib * 2**20)
    try:
        return SimulatedResidency(profile, policy, num_workers=workers, budget_bytes=budget)
    except ValueError as error:
        raise TraceError(str(error)) from None


def _events(text: str | None) -> list[Failure | Slowdown]:
    """Return the events that `3@12,1.5x0@4` names. Raises TraceError for anything else."""
    from slackfit.simulation.devices import Failure, Slowdown
    from traces.trace import TraceError

    events: list[Failure | Slowdown] = []
    for part in (text or "").split(",") if text else []:
        found = _EVENT.fullmatch(part.strip())
        if found is None:
            raise TraceError(
                f"event {part!r} is not understood; give WORKER@SECONDS for a failure, "
                "FACTORxWORKER@SECONDS for a slow-down, as in 3@12 or 1.5x0@4"
            )
        at_s, worker_id = float(found["at"]), int(found["worker"])
        if found["factor"]:
            events.append(Slowdown(at_s, worker_id, float(found["factor"])))
        else:
            events.append(Failure(at_s, worker_id))
    return events
