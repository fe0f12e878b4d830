"""`supernet precision`: which subnets of a checkpoint are served in int8, or in one bit, too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from supernet import Checkpoint, load_checkpoint, save_checkpoint
from training.data.checkpoint_data import ChooseOn, dataset_of
from training.data.samples import Dataset
from training.progress import tracked

Precision = Literal["int8", "signed_binary"]
Row = tuple[str, float, float | None, float, tuple[float, float]]

console = plain_console(stderr=True)


def precision(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder; the result goes in it.")],
    to: Annotated[
        Precision, typer.Option(help="int8, or signed_binary: one bit per weight.")
    ] = "int8",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Array folder, or train/CLASS/* and test/; of a decoder text files; default: as "
            "trained on."
        ),
    ] = None,
    choose_on: Annotated[
        ChooseOn,
        typer.Option(
            help="Samples that decide: validation, or half of test for weights that saw the rest."
        ),
    ] = "validation",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Points of accuracy that may be lost; default 0.3, of signed_binary any."
        ),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="Training samples for ranges, or for norm statistics.")
    ] = 512,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    alone: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With signed_binary: write a checkpoint of the one-bit weights alone.",
        ),
    ] = None,
) -> None:
    """Measure every subnet in a precision; offer what loses little as entries (ID-i8, ID-sb)."""
    with user_errors(ValueError, OSError, SafetensorError, ImportError):
        if alone is not None and to != "signed_binary":
            raise ValueError(f"--alone goes with --to signed_binary, not with {to}")
        loaded = load_checkpoint(checkpoint)
        if to == "int8":
            _check_rounds(loaded)
        check_outputs(folders=[checkpoint, alone])
        samples = dataset_of(loaded, data, choose_on=choose_on)
        if to == "int8":
            allowed = 0.003 if tolerance is None else tolerance / 100
            done, rows = _to_int8(loaded, samples, allowed, calibration_images, threads)
        else:
            points = None if tolerance is None else tolerance / 100
            done, rows = _to_signed_binary(loaded, samples, points, calibration_images, threads)
        save_checkpoint(done, checkpoint)
        if alone is not None:
            from training.evaluation.low_bit import low_bit_alone

            save_checkpoint(low_bit_alone(done), alone)
    _print(f"{loaded.name} in {to}, {samples.name}", to, rows)
    if done.low_bit is not None and to == "signed_binary":
        console.print(f"{done.low_bit.bits_per_weight:.3f} bits per weight")


def _check_rounds(checkpoint: Checkpoint) -> None:
    if checkpoint.definition.family.generates:
        raise ValueError(
            f"checkpoint {checkpoint.name!r} is a decoder, whose int8 is a packing of all its "
            "widths and no entry of its own (--packing int8 of generate and profile); only "
            "--to signed_binary makes entries"
        )


def _to_int8(
    loaded: Checkpoint, samples: Dataset, tolerance: float, images: int, threads: int
) -> tuple[Checkpoint, list[Row]]:
    from training.evaluation.int8 import measure_int8, with_int8

    with tracked(loaded.subnets, "measure", console) as following:
        measured = measure_int8(
            loaded,
            samples,
            tolerance=tolerance,
            calibration_images=images,
            threads=threads,
            progress=lambda _: following,
        )
    rows: list[Row] = [
        (
            m.subnet.subnet_id,
            m.subnet.accuracy,
            None if m.int8 is None else m.int8.accuracy,
            m.loss,
            m.ci95,
        )
        for m in measured
    ]
    return with_int8(loaded, measured), rows


def _to_signed_binary(
    loaded: Checkpoint, samples: Dataset, tolerance: float | None, images: int, threads: int
) -> tuple[Checkpoint, list[Row]]:
    from subnetact.threads import computing_with
    from training.evaluation.low_bit import measure_low_bit, with_low_bit_entries

    with computing_with(threads), tracked(loaded.subnets, "measure", console) as following:
        measured = measure_low_bit(
            loaded, samples, calibration_images=images, progress=lambda _: following
        )
    rows: list[Row] = [
        (
            m.subnet.subnet_id,
            m.subnet.accuracy,
            m.accuracy if tolerance is None or m.loss <= tolerance else None,
            m.loss,
            m.loss_ci95,
        )
        for m in measured
    ]
    return with_low_bit_entries(loaded, measured, tolerance), rows


def _print(title: str, to: str, rows: Iterable[Row]) -> None:
    """A line per subnet; its accuracy in the precision is there where it is offered."""
    table = Table(title=title)
    for column in ("subnet", "float %", f"{to} %", "lost on validation, points", "offered"):
        table.add_column(column, justify="left" if column == "subnet" else "right")
    for subnet_id, before, after, loss, (low, high) in rows:
        table.add_row(
            subnet_id,
            f"{100 * before:.2f}",
            "" if after is None else f"{100 * after:.2f}",
            f"{100 * loss:+.2f} ± {50 * (high - low):.2f}",
            "no" if after is None else "yes",
        )
    plain_console().print(table)
