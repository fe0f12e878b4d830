"""`supernet calibrate`: norm statistics and accuracies of a checkpoint's subnets on given data.

For checkpoints made by `supernet import`, which serve the largest subnet at an unknown accuracy,
and for data that the supernet was not trained on. Weights stay as they are. A decoder has no such
statistics; its accuracies are qualities on text of yours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors
from supernet import Arch, Checkpoint, ServedSubnet, cost, load_checkpoint, save_checkpoint
from supernet.spec import parse_arch
from training.config import DataConfig
from training.data.checkpoint_data import ChooseOn, dataset_of
from training.data.samples import Dataset, Samples
from training.evaluation.agreement_judge import with_qualities
from training.evaluation.evaluate import Measurement, measure, pareto_of, uniform_archs
from training.evaluation.judge import reported_on
from training.evaluation.retrieval import reference_neighbours
from training.evaluation.tune_norms import TuningOptions, tune_norms
from training.progress import tracked

console = Console(stderr=True)


def calibrate(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Array folder, or train/CLASS/* and test/ or val/; of a decoder text files "
            "(comma-separated)."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint folder to write; default: in place.")
    ] = None,
    ladder: Annotated[
        bool,
        typer.Option(help="Serve the space's uniform shapes and its ladder too, where they pay."),
    ] = True,
    arch: Annotated[
        list[str] | None, typer.Option(help="Serve this subnet too: letters or JSON.")
    ] = None,
    min_accuracy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out less accurate subnets.")
    ] = 0.0,
    choose_on: Annotated[
        ChooseOn,
        typer.Option(
            help="Images held out of training, or half of the test images (the others report): "
            "for weights that were trained on all training images."
        ),
    ] = "validation",
    images: Annotated[
        int, typer.Option(min=1, help="Training images to calibrate on; no decoder needs any.")
    ] = 2048,
    windows: Annotated[
        int, typer.Option(min=2, help="Decoders: windows of held-out text, per subnet and split.")
    ] = 64,
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Statistics of subnets that have some are made anew."),
    ] = False,
    tune_epochs: Annotated[
        float,
        typer.Option(min=0.0, help="Then tune each served subnet's normalisation for so long."),
    ] = 0.0,
) -> None:
    """Give a checkpoint's subnets norm statistics and measured accuracies on your data."""
    with user_errors(ValueError, OSError, SafetensorError):
        loaded = load_checkpoint(checkpoint)
        if out is not None and out.exists():
            raise ValueError(f"{out} exists already; choose another --out or delete it")
        check_outputs(folders=[checkpoint if out is None else out.parent])
        space = loaded.definition.space
        extra = [parse_arch(text, space) for text in arch or ()]
        archs = [
            *(s.arch for s in loaded.subnets),
            *extra,
            *(uniform_archs(space) if ladder else ()),
        ]
        wanted = list(dict.fromkeys(archs))
        held_out = dataset_of(loaded, data, choose_on=choose_on)
        before: dict[str, float] = {}
        if loaded.definition.family.generates:
            if tune_epochs:
                raise ValueError(
                    "--tune-epochs tunes batch norms, a decoder has none: leave it out"
                )
            with tracked(wanted, "measure", console) as following:
                done = with_qualities(
                    loaded, held_out, following, windows=windows, min_quality=min_accuracy
                )
        else:
            done, before = recalibrated(
                loaded,
                held_out,
                wanted,
                images=images,
                keep_statistics=not recalibrate,
                min_accuracy=min_accuracy,
                tune_epochs=tune_epochs,
            )
        save_checkpoint(done, out or checkpoint)
    for s in done.subnets:
        low, high = (100 * x for x in s.ci95)
        Console().print(
            f"{s.subnet_id}: {s.macs / 1e6:.1f} M MACs, {100 * s.accuracy:.2f} % "
            f"({low:.1f} to {high:.1f}){_before_text(before.get(s.subnet_id))}",
            highlight=False,
            soft_wrap=True,
        )


def recalibrated(
    checkpoint: Checkpoint,
    data: Dataset,
    archs: list[Arch],
    *,
    images: int,
    keep_statistics: bool,
    min_accuracy: float,
    tune_epochs: float = 0.0,
) -> tuple[Checkpoint, dict[str, float]]:
    """Return the checkpoint serving those of `archs` that pay.

    They are chosen on the validation images, and the test images report what was chosen, once.
    Statistics come from `images` drawn training images; `keep_statistics` keeps those that a
    subnet has. Beside it the test accuracies, by subnet id, of served subnets whose statistics are
    new, with the ones before (its own, or slices of the supernet's). With `tune_epochs` above 0 the
    normalisation of each is tuned for so long where that helps on the validation images. Raises
    ValueError when no subnet reaches `min_accuracy`, or when there is nothing to tune.
    """

    def judge(
        arch: Arch, held_out: Samples, statistics: Mapping[str, torch.Tensor] | None
    ) -> Measurement:
        return measure(
            checkpoint.state,
            checkpoint.definition,
            arch,
            input_spec=checkpoint.input,
            calibration=data.train,
            calibration_images=images,
            held_out=held_out,
            statistics=statistics,
            reference=references[id(held_out)],
        )

    references = {
        id(split): reference_neighbours(
            checkpoint.state, checkpoint.definition, split, checkpoint.input
        )
        for split in (data.validation, data.test)
    }
    known = checkpoint.norm_statistics if keep_statistics else {}
    with tracked(archs, "measure", console) as following:
        measured = [judge(a, data.validation, known.get(a.subnet_id)) for a in following]
    good = [m for m in measured if m.accuracy >= min_accuracy]
    if not good:
        best = max(measured, key=lambda m: m.accuracy)
        raise ValueError(
            f"no subnet reaches {min_accuracy:g}: the best is {best.arch.subnet_id} with "
            f"{best.accuracy:.4f} on {len(data.validation)} held-out images of {data.name}; are "
            "its classes in the order of the network's?"
        )
    chosen = pareto_of(good, lambda m: cost(checkpoint.definition, m.arch).macs)
    if tune_epochs:
        largest = checkpoint.definition.space.largest
        teacher = next((m for m in measured if m.arch == largest), None) or judge(
            largest, data.validation, known.get(largest.subnet_id)
        )
        tuned = _tuned(checkpoint, data, [*chosen, teacher], tune_epochs)
        chosen = [_better(m, judge(m.arch, data.validation, tuned[m.arch])) for m in chosen]
    kept: list[Measurement] = []
    before: dict[str, float] = {}
    with tracked(chosen, "test", console) as following:
        for m in following:
            kept.append(judge(m.arch, data.test, m.statistics))
            name = m.arch.subnet_id
            if m.statistics and name not in known:
                old = checkpoint.norm_statistics.get(name, {})
                before[name] = judge(m.arch, data.test, old).accuracy
    done = checkpoint.serving(
        tuple(
            ServedSubnet(
                arch=m.arch,
                accuracy=m.accuracy,
                ci95=m.ci95,
                **cost(checkpoint.definition, m.arch)._asdict(),
            )
            for m in kept
        ),
        {m.arch.subnet_id: m.statistics for m in kept},
        reported_on(data, images, checkpoint.definition),
    )
    return replace(done, classes=data.classes), before


def _tuned(
    checkpoint: Checkpoint, data: Dataset, measured: list[Measurement], epochs: float
) -> dict[Arch, dict[str, torch.Tensor]]:
    """Tuned statistics, on training images augmented as when the supernet was trained."""
    recorded: Mapping[str, Any] = checkpoint.provenance.get("config", {})
    options = DataConfig(**recorded["data"]) if "data" in recorded else DataConfig(augment=0.0)
    with Progress(console=console) as bar:
        task = bar.add_task("tune", total=None)
        return tune_norms(
            checkpoint.state,
            checkpoint.definition,
            {m.arch: m.statistics for m in measured},
            data.train,
            checkpoint.input,
            TuningOptions(epochs, options),
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _better(as_it_was: Measurement, tuned: Measurement) -> Measurement:
    return tuned if tuned.accuracy > as_it_was.accuracy else as_it_was


def _before_text(before: float | None) -> str:
    return "" if before is None else f", {100 * before:.2f} % before calibration"
