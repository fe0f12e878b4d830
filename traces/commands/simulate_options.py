"""The options of `simulate`: what each may be, and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ProfileOption = Annotated[Path, typer.Option(metavar="FILE", help="Latency profile (JSON).")]
TraceOption = Annotated[str, typer.Option(metavar="SPEC", help="Trace file or generator.")]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME...]",
        help="One run per policy; NAME@key=value gives parameters. Default: slackfit, "
        "slackwidth for streams.",
    ),
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Devices; with --replicas of each.")]
ReplicasOption = Annotated[
    int, typer.Option(min=1, help="Servers, each with a queue and a scheduler of its own.")
]
RoutingOption = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="How queries get to replicas: one-queue, round-robin (default), power-of-two, "
        "predicted-finish, sticky:CONNECTIONS, client[:PROCESSES].",
    ),
]
SloOption = Annotated[
    float | None, typer.Option(help="Deadline of each query; default: the trace's own.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything that is drawn.", min=0)]
OverheadOption = Annotated[
    float, typer.Option("--overhead-ms", min=0, help="Added to every batch's profiled latency.")
]
DenseOption = Annotated[
    int, typer.Option("--subnets", min=0, help="Interpolate subnets up to this count; 0: do not.")
]
DropOption = Annotated[
    bool | None,
    typer.Option(
        "--drop-hopeless/--no-drop-hopeless",
        help="Drop queries that no subnet can serve in time; default: as the policy says.",
    ),
]
EventsOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORKER@S[,...]",
        help="Device events: 3@12 fails worker 3 after 12 s, 1.5x0@4 slows worker 0.",
    ),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE[,FILE...]",
        help="A profile per worker: what batches take there; --profile stays the forecast.",
    ),
]
NoiseOption = Annotated[
    bool, typer.Option("--noise", help="Draw latencies from the profile's quantiles.")
]
ResidencyOption = Annotated[
    str | None,
    typer.Option(
        metavar="value|sushisched|static",
        help="What devices keep resident; needs a profile with residency tables.",
    ),
]
CacheOption = Annotated[
    float | None,
    typer.Option(min=0, help="Room for resident subgraphs; default: for the largest one."),
]
BoundOption = Annotated[
    bool, typer.Option("--bound", help="Add an upper bound of the utility to each report.")
]
CapacityOption = Annotated[
    str | None,
    typer.Option(
        "--find-capacity",
        metavar="KEY=FRACTION",
        help="Search the highest rate with, say, attainment=0.999; reports are of that rate.",
    ),
]
StreamedOption = Annotated[
    bool,
    typer.Option("--stream", help="Flat memory for long generators; reports lack time series."),
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of reports.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the report page.")
]
ChromeOption = Annotated[
    Path | None,
    typer.Option("--chrome", metavar="FILE", help="Write the schedule as a Chrome trace."),
]
