"""One whole run: train, calibrate, evaluate, write the checkpoint folder."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from supernet import Checkpoint, SupernetDefinition, define_supernet, save_checkpoint
from training.config import TrainConfig
from training.data import Dataset, load_dataset
from training.distributed import Workers
from training.evaluate import Evaluation, candidate_archs, evaluate, pareto
from training.resume import RESUME_FILE
from training.trainer import Progress, Trainer

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
    workers: Workers | None = None,
) -> Checkpoint | None:
    """Run `config` into folder `out` and return the checkpoint, None when stopped before the end.

    Of several `workers` the first evaluates, writes and returns the checkpoint.

    Raises OutputExistsError, ResumeError, TrainingDivergedError, or ValueError for a config that
    does not fit the supernet or the data.
    """
    definition = define_supernet(config.supernet.variant, **config.supernet.overrides)
    options = config.data
    data = load_dataset(options.name, config.seed, options.path, options.validation)
    _check_fits(definition.config.num_classes, definition.config.in_channels, data)
    if not resume and (out / RESUME_FILE).exists():
        raise OutputExistsError(f"{out} already holds a run; pass --resume or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    workers = workers or Workers()
    trainer = Trainer(config, definition, data, out, resume=resume, workers=workers)
    if not trainer.run(progress=progress, should_stop=should_stop) or not workers.is_first:
        return None
    evaluation = _evaluate(config, definition, trainer, data, evaluation_progress)
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


def _evaluate(
    config: TrainConfig,
    definition: SupernetDefinition,
    trainer: Trainer,
    data: Dataset,
    progress: EvaluationProgress | None,
) -> Evaluation:
    options = config.evaluation
    archs = candidate_archs(
        definition.space,
        random_archs=options.random_archs,
        seed=config.seed,
    )
    measured = evaluate(
        {name: tensor.cpu() for name, tensor in trainer.state().items()},
        definition,
        archs,
        input_spec=data.input,
        calibration_images=data.train.images[: options.calibration_images],
        held_out=data.validation,
        progress=progress,
    )
    return pareto(measured)


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
