"""The options of `search`: what each may be, and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.data.checkpoint_data import ChooseOn

CheckpointOption = Annotated[Path, typer.Option(help="A checkpoint folder.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Data folder, of a decoder text files (comma-separated); default: what the "
        "checkpoint was trained on."
    ),
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result.")
]
PlotOption = Annotated[Path | None, typer.Option(help="Write a picture (.png, .svg, .pdf).")]
OutOption = Annotated[
    Path | None, typer.Option(help="Write a checkpoint folder that serves what was found.")
]
KeepOption = Annotated[
    Path | None,
    typer.Option(help="Keep measurements in this file, and go on from those in it."),
]
ProfileOption = Annotated[
    Path | None, typer.Option(help="Measured latency is the cost, instead of MACs.")
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, help="Of the latencies; of a decoder streams that decode.")
]
MaxMacsOption = Annotated[float | None, typer.Option(help="In millions.")]
MaxLatencyOption = Annotated[float | None, typer.Option(help="With --profile.")]
ChooseOnOption = Annotated[
    ChooseOn,
    typer.Option(
        help="Images held out of training, or half of the test images (the others report): "
        "for weights that were trained on all training images."
    ),
]
SamplesOption = Annotated[
    int, typer.Option(min=0, help="Random subnets to measure besides the uniform ones.")
]
FinalOption = Annotated[
    int, typer.Option(min=0, help="Predicted subnets to measure; 0 predicts nothing.")
]
CalibrationOption = Annotated[int, typer.Option(min=1, help="Per subnet.")]
WindowsOption = Annotated[
    int, typer.Option(min=2, help="Decoders: windows of held-out text, per subnet and split.")
]
GenerationsOption = Annotated[int, typer.Option(min=0, help="Of the evolution.")]
SeedOption = Annotated[int, typer.Option(help="Same seed, same result.")]
