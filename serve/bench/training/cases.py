"""The cases of the training benchmark: a base run, and what each case changes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from supernet import Arch, SupernetDefinition, cost
from training.config import TrainConfig, config_from_json

NUM_POINTS = 5
REFERENCE = "deps"

CASES: dict[str, dict[str, dict[str, Any]]] = {
    REFERENCE: {},
    "deps_published": {"schedule": {"parts": 1}},
    "sandwich": {"schedule": {"strategy": "sandwich", "parts": 1}},
    "sandwich_parts": {"schedule": {"strategy": "sandwich"}},
    "progressive": {"schedule": {"strategy": "progressive"}},
    "compound": {"schedule": {"strategy": "compound"}},
    "single": {"schedule": {"strategy": "single"}},
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
    "deps_parts_2": {"schedule": {"parts": 2}},
    "deps_batch_64": {"data": {"batch_size": 64}},
    "deps_alpha": {"loss": {"distillation": "alpha"}},
    "deps_no_ramp": {"schedule": {"ramp_epochs": 0.0}},
}
"""What a case changes of the base run, by section; the reference is what a config has by default.

`parts` 1 is the published rule of DepS and of the sandwich; each is compared with and without.
"""
COMPARED = (REFERENCE, "deps_published", "sandwich", "sandwich_parts", "progressive", "compound")

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
    "schedule": {"epochs": 40, "delay": 0.5, "ramp_epochs": 2.0},
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
    "schedule": {"epochs": 30, "delay": 0.5, "ramp_epochs": 1.0},
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


def cased(base: TrainConfig, case: str, seed: int) -> TrainConfig:
    """The base run as a case changes it."""
    config = replace(base, seed=seed)
    for name, values in CASES[case].items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    return config


def of_length(config: TrainConfig, steps: int, share: float = 1.0) -> TrainConfig:
    """The config with so many steps, which are `share` of a whole run: its ramp is as much less."""
    ramp_epochs = config.schedule.ramp_epochs * share
    schedule = replace(config.schedule, steps=steps, ramp_epochs=ramp_epochs)
    return replace(config, schedule=schedule)


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
