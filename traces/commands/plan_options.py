"""The options of `plan`, beside those of `simulate`: what each may be, and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PromiseOption = Annotated[
    str,
    typer.Option(
        metavar="PROMISE",
        help='What must hold: "attainment>=0.999,accuracy>=0.775"; floor>=0.7 of every '
        "answer; gold:attainment>=0.9999 of one tenant or class. Of streams: "
        "first_output<=500ms,period<=50ms,attainment>=0.99,fluidity>=0.95.",
    ),
]
ProfilesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE[,FILE...]", help="A latency profile per type of device."),
]
DeadlineOption = Annotated[
    float | None, typer.Option(min=0.001, help="Deadline; default: the trace's own.")
]
CatalogOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Devices and their prices (TOML); else all cost 1."),
]
PoliciesOption = Annotated[
    str | None, typer.Option(metavar="NAME[,NAME...]", help="Policies to try.")
]
RoutingsOption = Annotated[
    str | None,
    typer.Option(
        metavar="RULE[,RULE...]",
        help="How queries get to several devices: one-queue (default), round-robin, or as "
        "in `simulate`; those beyond the two run in Python. Streams: round-robin, "
        "fewest-streams; default both.",
    ),
]
MaxDevicesOption = Annotated[int | None, typer.Option(min=1, help="Devices at the most.")]
MixedOption = Annotated[
    bool, typer.Option("--mixed/--no-mixed", help="Also try fleets of two types of device.")
]
ConfidenceOption = Annotated[
    float,
    typer.Option(
        min=0, max=0.999, help="Share of redrawn traces that keep the promise; 0: this one."
    ),
]
DrawsOption = Annotated[
    int, typer.Option(min=1, help="Draws of a generator's trace that the best fleets must keep.")
]
HourlyOption = Annotated[
    bool,
    typer.Option("--stream", help="Hour by hour, for generators that do not fit in memory."),
]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="With --stream; default: one per core.")
]
VerifyOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL[,URL...]",
        help="Foretell these servers of the planned device at four loads, then replay.",
    ),
]
VerifySecondsOption = Annotated[
    float, typer.Option(min=1, help="Seconds of each load, with --verify.")
]
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the plan.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the plan's page.")
]
