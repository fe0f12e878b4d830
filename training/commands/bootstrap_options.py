"""The options of `bootstrap`: what each may be, and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORIGINS = ("timm", "torchvision", "ofa", "huggingface", "supernet")

SourceArgument = Annotated[
    str, typer.Argument(help="A model's name for timm and torchvision; else a file or folder.")
]
OriginOption = Annotated[str, typer.Option("--from", help=f"Whose naming: {', '.join(ORIGINS)}.")]
DataOption = Annotated[
    Path, typer.Option(help="train/CLASS/* with val/ or test/, an array folder, or texts.csv.")
]
OutOption = Annotated[Path, typer.Option(help="Folder for the checkpoint, the page and the state.")]
MinutesOption = Annotated[float, typer.Option(help="Wall time that all of it may take.")]
ResolutionOption = Annotated[
    int, typer.Option(min=0, help="Side of the images in pixels; 0: the network's own.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="Your own file of the timm or torchvision network that SOURCE names."),
]
SupernetOption = Annotated[
    str, typer.Option(help="Which named supernet, where the weights don't tell.")
]
BatchSizeOption = Annotated[int, typer.Option(help="Samples of a step.")]
ValidationOption = Annotated[
    float, typer.Option(help="Share of the training samples to choose subnets and rate on.")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(help="TOML; default: as configs/bootstrap_cnn.toml or bootstrap_vit.toml."),
]
MicroBatchSizeOption = Annotated[
    int, typer.Option(help="Samples of one pass, where a step does not fit; 0: all of them.")
]
ActivationCheckpointingOption = Annotated[
    bool,
    typer.Option("--activation-checkpointing", help="Less memory for a third more computation."),
]
AloneOption = Annotated[
    bool, typer.Option("--alone", help="Train the whole network by itself, to compare with.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="0: torch's default.")]
SeedOption = Annotated[int, typer.Option(help="Of everything that is drawn.")]
ResumeOption = Annotated[bool, typer.Option(help="Go on with the bootstrap in --out.")]
