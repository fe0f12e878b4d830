"""The cases of the training benchmark: the run that all vary, and steps for the same work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from supernet import Arch, SupernetDefinition, cost
from training.config import TrainConfig, config_from_json
from training.strategies.make_strategy import make_strategy, total_steps

NUM_POINTS = 5
_BACKWARD = 3  # a training pass costs about three forward passes
_SAMPLED_STEPS = 200  # of a run, to estimate its cost

PLAIN = ("deps", "sandwich", "progressive", "single")
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "deps_flops": {"schedule": {"sampler": "flops"}},
    "deps_average": {"optimizer": {"ema_decay": 0.998}},
    "deps_average_teacher": {"optimizer": {"ema_decay": 0.998}, "loss": {"teacher": "average"}},
    "deps_focus": {"schedule": {"focus": 0.1}},
    "deps_plateau": {"schedule": {"delay_rule": "plateau"}},
    "deps_plateau_average": {
        "schedule": {"delay_rule": "plateau"},
        "optimizer": {"ema_decay": 0.998},
    },
    "deps_compound": {"schedule": {"sampler": "compound"}},
    "deps_unsmoothed": {"loss": {"label_smoothing": 0.0}},
    "deps_one_random": {"schedule": {"random_subnets": 1}},
    "deps_early_one_random": {"schedule": {"delay": 0.25, "random_subnets": 1}},
    "deps_parts": {"schedule": {"parts": 2}},
    "deps_parts_3": {"schedule": {"parts": 3}},
    "deps_one_random_parts": {"schedule": {"random_subnets": 1, "parts": 2}},
    "deps_batch_64": {"data": {"batch_size": 64}},
    "deps_alpha": {"loss": {"distillation": "alpha"}},
    "deps_no_ramp": {"schedule": {"ramp_epochs": 0.0}},
}
CASES = (*PLAIN, *CHANGES)
QUICK = (*PLAIN, "deps_average")

_COMMON = {"evaluation": {"calibration_images": 1024}, "amp": "off"}
_CHOICES = [0.25, 0.5, 0.75, 1.0]
DIGITS: dict[str, Any] = {
    **_COMMON,
    "name": "digits",
    "supernet": {
        "variant": "resnet_tiny",
        "overrides": {"widths": [32, 32], "width_choices": _CHOICES, "expand_choices": _CHOICES},
    },
    "data": {"name": "digits", "batch_size": 32, "limit": 320},  # with all, every case has 99 %
    "schedule": {"epochs": 40, "delay": 0.5, "ramp_epochs": 2.0, "parts": 1},
    "optimizer": {"lr": 0.05},
}
FOLDER: dict[str, Any] = {
    **_COMMON,
    "amp": "bf16",  # 0.58 of the time of fp32 on a CPU with AVX-512 BF16
    "name": "folder",
    "supernet": {"variant": "resnet20_cifar", "overrides": {"depths": [2, 2, 2]}},
    "data": {
        "name": "folder",
        "batch_size": 128,
        "augmentation": "crop_flip",
        "limit": 10_000,
    },
    "schedule": {"epochs": 30, "delay": 0.5, "ramp_epochs": 1.0, "parts": 1},
    "optimizer": {"lr": 0.1},
}


def points_of(definition: SupernetDefinition, count: int = NUM_POINTS) -> list[Arch]:
    """Archs of the ladder, from smallest to largest, nearest to an even spread over MACs.

    Raises ValueError for a ladder with fewer.
    """
    # Widths are rounded to whole groups of channels, so two archs may be one network: take one.
    sizes = {cost(definition, arch).macs: arch for arch in definition.space.ladder()}
    ladder = list(sizes.values())
    macs = np.array(list(sizes), dtype=np.float64)
    if len(ladder) < count:
        raise ValueError(f"{definition.family_name}: {len(ladder)} sizes, {count} are compared")
    chosen = {0, len(ladder) - 1}
    for wanted in np.linspace(macs[0], macs[-1], count)[1:-1]:
        left = [i for i in range(len(ladder)) if i not in chosen]
        chosen.add(left[int(np.abs(macs[left] - wanted).argmin())])
    return [ladder[i] for i in sorted(chosen)]


def work(config: TrainConfig, definition: SupernetDefinition, steps_of_epoch: int) -> float:
    """Multiply-accumulates of a run, from steps evenly sampled.

    An undecided delay is taken to be half of the run.
    """
    known = replace(config, schedule=replace(config.schedule, delay_rule="fixed"))
    strategy = make_strategy(known, definition, steps_of_epoch)
    total = total_steps(known, steps_of_epoch)
    steps = np.unique(np.linspace(0, total - 1, _SAMPLED_STEPS).astype(int))
    per_image = np.mean([_step_work(known, definition, strategy.plan(s)) for s in steps])
    return float(per_image) * config.data.batch_size * total


def same_work(
    config: TrainConfig, definition: SupernetDefinition, steps_of_epoch: int, budget: float
) -> TrainConfig:
    """The config with the number of steps that costs `budget`, by bisection; within one step."""

    def with_steps(steps: int) -> TrainConfig:
        return replace(config, schedule=replace(config.schedule, steps=steps))

    low, high = 1, 4 * total_steps(config, steps_of_epoch)
    while high - low > 1:
        middle = (low + high) // 2
        if work(with_steps(middle), definition, steps_of_epoch) > budget:
            high = middle
        else:
            low = middle
    return with_steps(low)


def _step_work(config: TrainConfig, definition: SupernetDefinition, plan: Sequence[Any]) -> float:
    largest = cost(definition, definition.space.largest).macs
    passes = _BACKWARD * sum(cost(definition, t.arch).macs / t.part[1] for t in plan)
    targets = {task.target for task in plan}
    is_averaged = "full_model" in targets and config.loss.teacher == "average"
    has_teacher = bool(targets & {"teacher", "labels_and_teacher"}) or is_averaged
    return passes + (largest if has_teacher else 0)


def cased(base: TrainConfig, case: str, seed: int) -> TrainConfig:
    sections: Mapping[str, Mapping[str, Any]] = CHANGES.get(case, {})
    strategy = case if case in PLAIN else "deps"
    config = replace(base, seed=seed, schedule=replace(base.schedule, strategy=strategy))
    for name, values in sections.items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    return config


def base_config(
    data: Path | None, *, epochs: int | None, images: int | None, threads: int
) -> TrainConfig:
    """The run that every case varies: digits, or the array folder at `data`."""
    config = config_from_json(DIGITS if data is None else _with_path(FOLDER, data))
    config = replace(config, threads=threads)
    if epochs is not None:
        config = replace(config, schedule=replace(config.schedule, epochs=epochs))
    if images is not None:
        config = replace(config, data=replace(config.data, limit=images))
    return config


def _with_path(base: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {**base, "data": {**base["data"], "path": str(path)}}
