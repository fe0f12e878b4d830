"""`supernet calibrate`: norm statistics and accuracies of a checkpoint's subnets on given data.

For checkpoints made by `supernet import`, which serve the largest subnet at an unknown accuracy,
and for data that the supernet was not trained on. Weights stay as they are. A decoder has no such
statistics; its accuracies are qualities on text of yours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from supernet import Arch, Checkpoint, load_checkpoint, save_checkpoint
from supernet.spec import parse_arch
from training.commands.calibrate_options import (
    ArchOption,
    DataOption,
    ImagesOption,
    LadderOption,
    MinAccuracyOption,
    OutOption,
    RecalibrateOption,
    TuneEpochsOption,
)
from training.commands.recalibration import recalibrated
from training.commands.search_options import CheckpointOption, ChooseOnOption, WindowsOption
from training.data.checkpoint_data import dataset_of
from training.evaluation.agreement_judge import with_qualities
from training.evaluation.evaluate import uniform_archs
from training.progress import tracked

console = plain_console(stderr=True)


def calibrate(
    checkpoint: CheckpointOption,
    data: DataOption,
    out: OutOption = None,
    ladder: LadderOption = True,
    arch: ArchOption = None,
    min_accuracy: MinAccuracyOption = 0.0,
    choose_on: ChooseOnOption = "validation",
    images: ImagesOption = 2048,
    windows: WindowsOption = 64,
    recalibrate: RecalibrateOption = False,
    tune_epochs: TuneEpochsOption = 0.0,
) -> None:
    """Give a checkpoint's subnets norm statistics and measured accuracies on your data."""
    with user_errors(ValueError, OSError, SafetensorError):
        loaded = load_checkpoint(checkpoint)
        _check_out(checkpoint, out)
        archs = _archs(loaded, arch or (), with_ladder=ladder)
        held_out = dataset_of(loaded, data, choose_on=choose_on)
        before: dict[str, float] = {}
        if loaded.definition.family.generates:
            if tune_epochs:
                raise ValueError(
                    "--tune-epochs tunes batch norms, a decoder has none: leave it out"
                )
            with tracked(archs, "measure", console) as following:
                done = with_qualities(
                    loaded, held_out, following, windows=windows, min_quality=min_accuracy
                )
        else:
            done, before = recalibrated(
                loaded,
                held_out,
                archs,
                images=images,
                keep_statistics=not recalibrate,
                min_accuracy=min_accuracy,
                tune_epochs=tune_epochs,
            )
        save_checkpoint(done, out or checkpoint)
    _print_accuracies(done, before)


def _check_out(checkpoint: Path, out: Path | None) -> None:
    """Refuse what can't be written before anything is measured. Raises ValueError, OSError."""
    if out is not None and out.exists():
        raise ValueError(f"{out} exists already; choose another --out or delete it")
    check_outputs(folders=[checkpoint if out is None else out.parent])


def _archs(checkpoint: Checkpoint, specs: Sequence[str], *, with_ladder: bool) -> list[Arch]:
    """Return what may be served, each once: what is, what is asked for, and the ladder.

    Raises ValueError for a spec of no subnet.
    """
    space = checkpoint.definition.space
    archs = [subnet.arch for subnet in checkpoint.subnets]
    archs += [parse_arch(spec, space) for spec in specs]
    archs += uniform_archs(space) if with_ladder else []
    return list(dict.fromkeys(archs))


def _print_accuracies(checkpoint: Checkpoint, before: Mapping[str, float]) -> None:
    """Print a line per subnet; `before` has accuracies before calibration, by id, if known."""
    for s in checkpoint.subnets:
        low, high = (100 * x for x in s.ci95)
        text = (
            f"{s.subnet_id}: {s.macs / 1e6:.1f} M MACs, {100 * s.accuracy:.2f} % "
            f"({low:.1f} to {high:.1f})"
        )
        if s.subnet_id in before:
            text += f", {100 * before[s.subnet_id]:.2f} % before calibration"
        typer.echo(text)
