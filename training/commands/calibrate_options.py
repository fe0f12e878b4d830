"""The options of `calibrate`: what each may be, and its line of help; some are as of `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path,
    typer.Option(
        help="Array folder, or train/CLASS/* and test/ or val/; of a decoder text files "
        "(comma-separated)."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Checkpoint folder to write; default: in place.")
]
LadderOption = Annotated[
    bool,
    typer.Option(help="Serve the space's uniform shapes and its ladder too, where they pay."),
]
ArchOption = Annotated[
    list[str] | None, typer.Option(help="Serve this subnet too: letters or JSON.")
]
MinAccuracyOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Leave out less accurate subnets.")
]
ImagesOption = Annotated[
    int, typer.Option(min=1, help="Training images to calibrate on; no decoder needs any.")
]
RecalibrateOption = Annotated[
    bool,
    typer.Option("--recalibrate", help="Statistics of subnets that have some are made anew."),
]
TuneEpochsOption = Annotated[
    float,
    typer.Option(min=0.0, help="Then tune each served subnet's normalisation for so long."),
]
