"""The options of `replay`, beside those of streams: what each may be, and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

UrlOption = Annotated[str, typer.Option(help="The server, e.g. http://127.0.0.1:8000.")]
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Samples and labels (images.npy, labels.npy); default: noise."
    ),
]
LabelOption = Annotated[
    str | None, typer.Option(help="Name in the report; default: the server's policy.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="The model to ask; default: the server's first.")
]
WarmupOption = Annotated[float, typer.Option(min=0, help="Seconds left out at the start.")]
TimeoutOption = Annotated[
    float, typer.Option(min=0.001, help="Seconds after which a query is given up.")
]
RetriesOption = Annotated[
    int, typer.Option(min=0, help="Sends again when refused, while the deadline leaves room.")
]
MaxLagOption = Annotated[
    float | None,
    typer.Option(min=0, help="Sending later (p99) makes the run invalid; default: SLO / 10."),
]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="Senders; default: what the trace's rate asks for.")
]
AlsoSimulateOption = Annotated[
    bool, typer.Option("--also-simulate", help="Simulate the same, and show the error.")
]
ServedProfileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The server's profile, for --also-simulate."),
]
RepeatOption = Annotated[
    int, typer.Option(min=1, help="Runs of the same trace, which show how far they vary.")
]
