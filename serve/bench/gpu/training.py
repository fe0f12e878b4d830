"""Part `training` of `serve.bench.gpu`: pictures per second of a training step on the device.

The trainer as it is, on random pictures of the network's own size: the full model alone, and DepS
with all of its passes in every step (the full model, then the smallest and two random subnets, each
on a third of the batch). A step's time is from one report to the next: batch, augmentation, passes,
optimizer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from serve.bench.gpu.cases import GpuBench
from serve.bench.gpu.settings import TrainingCase
from supernet import SupernetDefinition, define_supernet
from supernet.input import InputSpec
from training.config import (
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    SupernetConfig,
    TrainConfig,
)
from training.data.samples import Dataset, Split
from training.trainer.run_log import StepReport
from training.trainer.trainer import Trainer

_PICTURES = 256  # that differ
_WARM_SHARE = 0.25  # of the steps, which do not count: algorithms, workspaces, channels sorted
_SCHEDULES: dict[str, dict[str, Any]] = {
    "full_model": {"strategy": "single"},
    "deps": {"strategy": "deps", "delay": 0.0, "ramp_epochs": 0.0},
}


@dataclass(frozen=True)
class _Repeated:
    """Samples that repeat `of`, up to `length`: an epoch need not lie in memory."""

    of: Split
    length: int

    @property
    def labels(self) -> torch.Tensor:
        return self.of.labels[torch.arange(self.length) % len(self.of)]

    def __len__(self) -> int:
        return self.length

    def take(self, rows: torch.Tensor, key: object = None) -> Split:
        return self.of.take(rows % len(self.of))


def training(bench: GpuBench) -> None:
    """Train each case for some steps in both ways."""
    with torch.inference_mode(mode=False):
        for case in bench.settings.trainings:
            steps_s: dict[str, float] = {}
            for name, schedule in _SCHEDULES.items():
                if bench.left_s < 0:
                    return
                options = ScheduleConfig(steps=case.steps, **schedule)
                steps_s[name] = _trained(bench, case, name, options)
            detail = "a step of four passes over one of the full model alone"
            over = steps_s["deps"] / steps_s["full_model"]
            bench.record(f"training/{case.variant}/deps_over_full_model", over, "ratio", detail)


def _trained(bench: GpuBench, case: TrainingCase, name: str, schedule: ScheduleConfig) -> float:
    """Train, record pictures per second, and return the median seconds of a step."""
    definition = define_supernet(case.variant)
    config = TrainConfig(
        supernet=SupernetConfig(variant=case.variant),
        device=bench.device,
        data=DataConfig(batch_size=case.batch_size, augmentation="crop_flip"),
        schedule=schedule,
        optimizer=OptimizerConfig(lr=1e-3),
    )
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, definition, _pictures(definition, case), Path(folder))
        at_s = [time.perf_counter()]

        def note(_: StepReport) -> None:
            bench.sync()  # the optimizer's step counts where it belongs
            at_s.append(time.perf_counter())

        trainer.run(progress=note)
    taken_s = [after - before for before, after in pairwise(at_s)]
    step_s = median(taken_s[max(1, int(_WARM_SHARE * len(taken_s))) :])
    detail = (
        f"batches of {case.batch_size}, median step {1e3 * step_s:.2f} ms of {len(taken_s)}, "
        f"{trainer.macs() / 1e9 / trainer.total_steps:.1f} GMACs a step, amp {config.amp}, "
        "augmentation and copies included"
    )
    figure = f"training/{case.variant}/{name}/images_per_s"
    bench.record(figure, case.batch_size / step_s, "images/s", detail)
    return step_s


def _pictures(definition: SupernetDefinition, case: TrainingCase) -> Dataset:
    """Random pictures with random labels; one epoch, so that no state is saved in between."""
    shape = tuple(definition.example_input(definition.space.largest).shape[1:])
    generator = torch.Generator().manual_seed(0)
    count = min(_PICTURES, case.batch_size * case.steps)
    classes = definition.config.num_classes
    split = Split(
        torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator),
        torch.randint(0, classes, (count,), generator=generator),
    )
    channels, height, width = shape
    mean, std = (0.5,) * channels, (0.25,) * channels
    spec = InputSpec(channels=channels, height=height, width=width, mean=mean, std=std)
    return Dataset(
        name="random pictures",
        input=spec,
        classes=tuple(map(str, range(classes))),
        train=_Repeated(split, case.batch_size * case.steps),
        validation=split,
        test=split,
    )
