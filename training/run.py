"""One whole run: train, calibrate, evaluate, write the checkpoint folder."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from supernet import Arch, Checkpoint, SupernetDefinition, define_supernet, save_checkpoint
from supernet.weights.import_weights import import_supernet
from supernet.weights.naming import State
from training.config import TrainConfig
from training.data.data import load_dataset
from training.data.samples import Dataset
from training.evaluation.evaluate import (
    Evaluation,
    candidate_archs,
    evaluate,
    pareto,
    watched_archs,
)
from training.trainer.distributed import ProcessGroup
from training.trainer.resume import RESUME_FILE
from training.trainer.run_log import RunLog
from training.trainer.trainer import Progress, Trainer

EvaluationProgress = Callable[[int, int], None]


class OutputExistsError(ValueError):
    """The output folder already holds a run."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    evaluation_progress: EvaluationProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    workers: ProcessGroup | None = None,
) -> Checkpoint | None:
    """Run `config` into folder `out` and return the checkpoint, None when stopped before the end.

    Of several `workers` the first evaluates, writes and returns the checkpoint.

    Raises OutputExistsError, ResumeError, TrainingDivergedError, or ValueError for a config that
    does not fit the supernet or the data.
    """
    definition, initial = _supernet(config)
    data = load_dataset(config.data, config.seed)
    _check_fits(definition.config.num_classes, definition.config.in_channels, data)
    if not resume and (out / RESUME_FILE).exists():
        raise OutputExistsError(f"{out} already holds a run; pass --resume or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    workers = workers or ProcessGroup()
    trainer = Trainer(
        config, definition, data, out, resume=resume, workers=workers, initial=initial
    )

    def epoch_end(epoch: int) -> dict[str, float]:
        every = config.evaluation.every_epochs
        if not every or epoch % every:
            return {}
        measured = _evaluate(config, definition, trainer, data, watched_archs(definition.space))
        return {f"accuracy/{s.subnet_id}": s.accuracy for s in measured.subnets}

    is_done = trainer.run(progress=progress, should_stop=should_stop, epoch_end=epoch_end)
    if not is_done or not workers.is_first:
        return None
    options = config.evaluation
    archs = candidate_archs(
        definition.space,
        random_archs=options.random_archs,
        seed=config.seed,
        grid=options.grid,
    )
    measured = _evaluate(config, definition, trainer, data, archs, evaluation_progress)
    evaluation = pareto(measured)
    RunLog(out, tensorboard=False).add_line(
        {"accuracy": {s.subnet_id: s.accuracy for s in measured.subnets}}
    )
    checkpoint = Checkpoint(
        name=config.name,
        definition=definition,
        input=data.input,
        classes=data.classes,
        state=trainer.state(),
        norm_statistics=evaluation.norm_statistics,
        subnets=evaluation.subnets,
        accuracy_source=(
            f"{data.name}: {len(data.validation)} validation images, "
            f"statistics calibrated on {config.evaluation.calibration_images} training images"
        ),
        permutation=trainer.permutation,
        provenance={
            "config": asdict(config),
            "versions": {"torch": version("torch"), "python": platform.python_version()},
        },
    )
    save_checkpoint(checkpoint, out)
    return checkpoint


def _supernet(config: TrainConfig) -> tuple[SupernetDefinition, State | None]:
    """The supernet, and the weights to start from if they are given."""
    options = config.supernet
    if not options.weights:
        return define_supernet(options.variant, **options.overrides), None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # a new classifier is drawn
        return import_supernet(
            options.weights,
            origin=options.origin,
            supernet=options.variant,
            new_head=True,
            **options.overrides,
        )


def _evaluate(
    config: TrainConfig,
    definition: SupernetDefinition,
    trainer: Trainer,
    data: Dataset,
    archs: Sequence[Arch],
    progress: EvaluationProgress | None = None,
) -> Evaluation:
    return evaluate(
        trainer.state(),
        definition,
        archs,
        input_spec=data.input,
        calibration=data.train,
        calibration_images=config.evaluation.calibration_images,
        held_out=data.validation,
        progress=progress,
    )


def _check_fits(num_classes: int, in_channels: int, data: Dataset) -> None:
    if num_classes != len(data.classes):
        raise ValueError(
            f"the supernet has {num_classes} classes, data set {data.name} has "
            f"{len(data.classes)}; set supernet.overrides.num_classes={len(data.classes)}"
        )
    if in_channels != data.input.channels:
        raise ValueError(
            f"the supernet takes {in_channels} channels, data set {data.name} has "
            f"{data.input.channels}; set supernet.overrides.in_channels={data.input.channels}"
        )
