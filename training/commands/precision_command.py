"""`supernet precision`: what 16-bit norms and weights do to a checkpoint's accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors
from subnetact.cpu.precision import Bits, Precision, allowed_bits, store, with_precision
from supernet import Checkpoint, load_checkpoint, save_checkpoint
from training.data.checkpoint_data import dataset_of
from training.data.samples import Dataset
from training.evaluation.evaluate import measure
from training.progress import tracked

console = Console(stderr=True)


def precision(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder; the result goes in it.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Array folder, or train/CLASS/* and test/; default: as trained on."),
    ] = None,
) -> None:
    """Measure every subnet in 16 bit; a server keeps in 16 bit what loses 0.1 point or less."""
    with user_errors(ValueError, OSError, SafetensorError):
        loaded = load_checkpoint(checkpoint)
        check_outputs(folders=[checkpoint])
        samples = dataset_of(loaded, data)
        measured = measure_precision(loaded, samples)
        source = f"{samples.name}: {len(samples.test)} test images"
        save_checkpoint(
            replace(loaded, provenance=with_precision(loaded, measured, source)), checkpoint
        )
    for subnet_id, row in measured.items():
        Console().print(
            f"{subnet_id}: {100 * row.wide:.2f} %, norms in 16 bit "
            f"{100 * (row.norms16 - row.wide):+.2f} points, weights too "
            f"{100 * (row.all16 - row.wide):+.2f} points",
            highlight=False,
            soft_wrap=True,
        )
    bits = allowed_bits(list(measured.values()))
    Console().print(
        f"kept from now on: weights in {bits.weights} bit, norms in {bits.norms} bit ({source})",
        highlight=False,
    )


def measure_precision(checkpoint: Checkpoint, data: Dataset) -> dict[str, Precision]:
    """Measure every served subnet on the test images in three precisions, by subnet id."""
    measured: dict[str, Precision] = {}
    with tracked(checkpoint.subnets, "measure", console) as following:
        for subnet in following:
            known = checkpoint.norm_statistics[subnet.subnet_id]
            accuracies: list[float] = []
            for bits in (None, Bits(32, 16), Bits(16, 16)):
                state, statistics = checkpoint.state, known
                if bits is not None:
                    state, statistics = store(
                        checkpoint.definition, checkpoint.state, subnet.arch, known, bits
                    )
                m = measure(
                    state,
                    checkpoint.definition,
                    subnet.arch,
                    input_spec=checkpoint.input,
                    calibration=data.train,
                    calibration_images=0,
                    held_out=data.test,
                    statistics=statistics,
                )
                accuracies.append(m.accuracy)
            measured[subnet.subnet_id] = Precision(*accuracies)
    return measured
