"""`supernet precision`: which subnets of a checkpoint are served in int8, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors
from supernet import load_checkpoint, save_checkpoint
from training.data.checkpoint_data import ChooseOn, dataset_of
from training.progress import tracked

console = Console(stderr=True)


def precision(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder; the result goes in it.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Array folder, or train/CLASS/* and test/; default: as trained on."),
    ] = None,
    choose_on: Annotated[
        ChooseOn,
        typer.Option(
            help="Samples that decide: validation, or half of test for weights that saw the rest."
        ),
    ] = "validation",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Points of accuracy that int8 may lose.")
    ] = 0.3,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="Training samples that ranges are taken on.")
    ] = 512,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure every subnet in int8; offer what loses little, as entries of its own (ID-i8)."""
    with user_errors(ValueError, OSError, SafetensorError, ImportError):
        from training.evaluation.int8 import measure_int8, with_int8

        loaded = load_checkpoint(checkpoint)
        check_outputs(folders=[checkpoint])
        samples = dataset_of(loaded, data, choose_on=choose_on)
        with tracked(loaded.subnets, "measure", console) as following:
            measured = measure_int8(
                loaded,
                samples,
                tolerance=tolerance / 100,
                calibration_images=calibration_images,
                threads=threads,
                progress=lambda _: following,
            )
        save_checkpoint(with_int8(loaded, measured), checkpoint)
    table = Table(title=f"{loaded.name} in int8, {samples.name}")
    for column in ("subnet", "float %", "int8 %", "lost on validation, points", "offered"):
        table.add_column(column, justify="left" if column == "subnet" else "right")
    for m in measured:
        half = 50 * (m.ci95[1] - m.ci95[0])
        table.add_row(
            m.subnet.subnet_id,
            f"{100 * m.subnet.accuracy:.2f}",
            "" if m.int8 is None else f"{100 * m.int8.accuracy:.2f}",
            f"{100 * m.loss:+.2f} ± {half:.2f}",
            "no" if m.int8 is None else "yes",
        )
    Console().print(table)
