"""The training run that a bootstrap makes of its options and its recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from supernet import Checkpoint
from training.bootstrap.journal import BootstrapJournal
from training.bootstrap.options import BootstrapOptions
from training.bootstrap.recipe import BootstrapRecipe
from training.bootstrap.start import data_config
from training.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    SupernetConfig,
    TrainConfig,
)

START = "start"
CALIBRATION_IMAGES = 1024


def data_of(options: BootstrapOptions, resolution: int) -> DataConfig:
    """Return how the data are read, at a resolution (0: the source's)."""
    known = data_config(Path(options.data), options.source)
    return replace(
        known,
        size=resolution or known.size,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        validation=options.validation,
    )


def base_config(
    options: BootstrapOptions,
    recipe: BootstrapRecipe,
    journal: BootstrapJournal,
    start: Checkpoint,
    out: Path,
) -> TrainConfig:
    """Return the run but for its length and its rate."""
    definition = start.definition
    frozen = recipe.teacher == "frozen" or (recipe.teacher == "auto" and journal.knows_classes)
    return TrainConfig(
        name=f"{start.name}-supernet",
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        supernet=SupernetConfig(
            variant=definition.family_name,
            overrides=definition.to_json()["config"],
            weights=str(out / START),
            origin="supernet",
        ),
        data=data_of(options, definition.space.largest.resolution),
        schedule=ScheduleConfig(
            strategy="single" if options.is_alone else "deps",
            delay=_delay(options, recipe, journal),
            random_subnets=recipe.random_subnets,
            parts=recipe.parts,
            sampler=recipe.sampler,
            sort_channels=False,  # they are, by what they carry
        ),
        optimizer=OptimizerConfig(
            name=recipe.optimizer,
            lr=recipe.lr * options.batch_size / 64,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            ema_decay=recipe.ema_decay,
        ),
        loss=LossConfig(
            label_smoothing=recipe.label_smoothing,
            teacher="frozen" if frozen and not options.is_alone else "full_model",
        ),
        activation_checkpointing=options.activation_checkpointing,
        evaluation=EvaluationConfig(calibration_images=CALIBRATION_IMAGES),
    )


def _delay(options: BootstrapOptions, recipe: BootstrapRecipe, journal: BootstrapJournal) -> float:
    """For which part of the run the whole network trains alone."""
    if options.is_alone:
        return 1.0
    return 0.0 if journal.knows_classes else recipe.delay
