"""Short trainings that decide about the long one: what a step costs, what a rate does."""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from supernet import SupernetDefinition, load_checkpoint
from training.config import TrainConfig
from training.data.samples import Dataset, Subset
from training.evaluation.evaluate import evaluate, watched_archs
from training.strategies.make_strategy import trained_alone
from training.trainer.resume import SaveError
from training.trainer.run_log import StepReport
from training.trainer.trainer import Trainer, TrainingDivergedError

_STEPS = 4  # of each kind; the first is not counted
_JUDGED_ON, _CALIBRATED_ON = 1000, 512


class StepTimes(NamedTuple):
    """Seconds of a step of the full model alone, and of one that trains all sizes."""

    alone_s: float
    all_s: float

    def mean_s(self, delay: float) -> float:
        """A step's mean in a run whose first `delay` trains the full model alone."""
        return delay * self.alone_s + (1.0 - delay) * self.all_s


def timed_steps(config: TrainConfig, data: Dataset, folder: Path) -> StepTimes:
    """Measure both kinds of step; nothing is left in `folder`."""
    schedule = replace(
        config.schedule, strategy="deps", steps=2 * _STEPS, delay=0.5, ramp_epochs=0.0
    )
    ends: list[tuple[float, bool]] = []

    def end_of_step(report: StepReport) -> None:
        ends.append((time.perf_counter(), report.subnet_loss is None))

    trainer = _trainer(replace(config, schedule=schedule), data, folder)
    trainer.run(progress=end_of_step)
    shutil.rmtree(folder, ignore_errors=True)
    took = [(after - before, alone) for (before, _), (after, alone) in itertools.pairwise(ends)]
    return StepTimes(
        *(median(s for s, was_alone in took if was_alone == alone) for alone in (True, False))
    )


def judged(config: TrainConfig, lr: float, steps: int, data: Dataset, folder: Path) -> float:
    """Mean accuracy of the smallest, middle and largest after `steps` at a rate; 0 if it diverged.

    Of the one subnet where it trains by itself.

    On at most 1,000 held-out samples. Nothing is left in `folder`.
    """
    config = replace(
        config,
        schedule=replace(config.schedule, steps=steps, ramp_epochs=0.0),
        optimizer=replace(config.optimizer, lr=lr, ema_decay=0.0),
    )
    space = _definition(config).space
    alone = trained_alone(config, space)
    trainer = _trainer(config, data, folder)
    try:
        trainer.run()
        served = evaluate(
            trainer.state(),
            _definition(config),
            watched_archs(space) if alone is None else [alone],
            input_spec=data.input,
            calibration=data.train,
            calibration_images=_CALIBRATED_ON,
            held_out=Subset(data.validation, _drawn(len(data.validation))),
        ).subnets
    except TrainingDivergedError:
        return 0.0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return sum(s.accuracy for s in served) / len(served)


def _drawn(count: int) -> torch.Tensor:
    """Rows drawn without replacement: held-out samples may lie class by class."""
    rows = np.random.default_rng(0).permutation(count)[:_JUDGED_ON]
    return torch.from_numpy(np.sort(rows))


def _definition(config: TrainConfig) -> SupernetDefinition:
    return load_checkpoint(config.supernet.weights).definition


def _trainer(config: TrainConfig, data: Dataset, folder: Path) -> Trainer:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SaveError(f"{folder}: can't be made ({error})") from None
    if config.threads:
        torch.set_num_threads(config.threads)
    start = load_checkpoint(config.supernet.weights)
    return Trainer(config, start.definition, data, folder, initial=start.state)
