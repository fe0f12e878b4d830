"""The cases of the training benchmark: a base run, and what each case changes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from subnetact.device import has_bf16
from supernet import Arch, SupernetDefinition, cost
from training.config import SupernetConfig, TrainConfig, config_from_json

NUM_POINTS = 5
REFERENCE = "deps"
ALONE = "alone"

Split = Literal["test", "validation"]
Changes = Mapping[str, Mapping[str, Any]]

CASES: dict[str, Changes | Callable[[TrainConfig], Changes]] = {
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
    "deps_front": {"schedule": {"front": 0.75}},
    "deps_floor": lambda base: {"optimizer": {"min_lr": 0.05 * base.optimizer.lr}},
    "deps_norms": {},  # and see NORM_TUNING
    "deps_pairs_last": {"loss": {"features": "layer_pairs", "pairs": "last"}},
    "deps_pairs_uniform": {"loss": {"features": "layer_pairs", "pairs": "uniform"}},
    "deps_pairs_attention": {"loss": {"features": "layer_pairs", "pairs": "attention"}},
}
"""What a case changes of the base run, by section; the reference is what a config has by default.

Joined by `+`, cases change all that each of them does. `parts` 1 is the published rule of DepS and
of the sandwich; each is compared with and without.
"""
NORM_TUNING = {"deps_norms": 1 / 30}
"""Of these cases, so many steps of the reference's run tune the norms of the five sizes."""
_NORM_STEP = 2
"""Training steps that a tuning step takes as long as: all sizes see the whole batch, in float32."""

PARTS: dict[str, tuple[str, ...]] = {
    "strategies": (
        *(REFERENCE, "deps_published", "sandwich", "sandwich_parts", "progressive", "compound"),
    ),
    "pairs": (REFERENCE, "deps_pairs_last", "deps_pairs_uniform", "deps_pairs_attention"),
    "ideas": (
        *(REFERENCE, "deps_batch_64", "deps_norms", "deps_front", "deps_floor", "deps_focus"),
    ),
    "alone": (REFERENCE, ALONE),
}
"""Cases that are compared with each other: the methods, distillation over layer pairs, ideas to
improve on the reference, and each size as a network of its own."""
JUDGED_ON_VALIDATION = frozenset(("ideas",))
"""Parts that choose among several, and so leave the test images alone."""

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


def cased(base: TrainConfig, case: str, seed: int, points: Sequence[Arch] = ()) -> TrainConfig:
    """The base run as a case changes it; `points` are those of the cases `alone_p1` and so on."""
    config = replace(base, seed=seed)
    for part in case.split("+"):
        place = place_of(part)
        changes = CASES[part] if place is None else _alone(points[place])
        for name, values in (changes(base) if callable(changes) else changes).items():
            config = replace(config, **{name: replace(getattr(config, name), **values)})
    return config


def chosen_cases(part: str, case: str | None) -> tuple[str, ...]:
    """The cases of parts, both as names joined by commas; those of `case` where it is given.

    Raises ValueError listing the known parts.
    """
    if case is not None:
        return tuple(CASES) if case == "all" else tuple(case.split(","))
    unknown = [name for name in part.split(",") if name not in PARTS]
    if unknown:
        raise ValueError(f"part {unknown[0]!r} is unknown, allowed {', '.join(PARTS)}")
    return tuple(dict.fromkeys(c for name in part.split(",") for c in PARTS[name]))


def judged_on(asked: str, part: str, case: str | None) -> Split:
    """On which images cases are compared: as asked, else as the parts have it.

    Raises ValueError for anything but test, validation and nothing.
    """
    if asked == "test" or asked == "validation":
        return asked
    if asked:
        raise ValueError(f"--judge {asked}: allowed test, validation")
    chooses = case is None and not JUDGED_ON_VALIDATION.isdisjoint(part.split(","))
    return "validation" if chooses else "test"


def place_of(case: str) -> int | None:
    """Which of the points a case trains alone, from 0; None where it trains a supernet."""
    own = case.removeprefix(f"{ALONE}_p")
    return int(own) - 1 if own != case else None


def check_cases(cases: Sequence[str]) -> None:
    """Raise ValueError listing the known cases unless each is one, or several joined by `+`."""
    known = (*CASES, ALONE)
    unknown = sorted({p for case in cases if case != ALONE for p in case.split("+")} - set(CASES))
    if unknown:
        raise ValueError(
            f"case {unknown[0]!r} is unknown, allowed {', '.join(known)}, or several of them but "
            f"{ALONE} joined by +"
        )


def at_rate(config: TrainConfig, lr: float) -> TrainConfig:
    """The config at another learning rate; a floor stays the same share of it."""
    options = config.optimizer
    floor = options.min_lr * lr / options.lr
    return replace(config, optimizer=replace(options, lr=lr, min_lr=floor))


def norm_steps(case: str, steps: int) -> tuple[int, int]:
    """How many of a case's `steps` train and how many tune norms, in the time of all of them."""
    share = max((NORM_TUNING.get(part, 0.0) for part in case.split("+")), default=0.0)
    tuning = max(1, round(share * steps)) if share else 0
    return max(1, steps - _NORM_STEP * tuning), tuning


def described(base: TrainConfig) -> dict[str, Any]:
    """What the base run is known by: where it differs from the defaults.

    So that options which are new leave the runs of before valid.
    """
    plain = asdict(TrainConfig(supernet=SupernetConfig(variant="")))
    return _differing(asdict(replace(base, threads=0)), plain)


def _differing(values: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _differing(value, plain[name])
        if isinstance(value, dict) and isinstance(plain.get(name), dict) and plain[name]
        else value
        for name, value in values.items()
        if value != plain.get(name)
    }


def _alone(arch: Arch) -> Changes:
    return {"schedule": {"strategy": "single", "subnet": json.dumps(arch.to_json())}}


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
    if data is not None and has_bf16(config.device):
        # 0.58 of the time of fp32 on a CPU with AVX-512 BF16, for its convolutions.
        config = replace(config, amp="bf16")
    config = replace(config, threads=threads)
    if epochs is not None:
        config = replace(config, schedule=replace(config.schedule, epochs=epochs))
    if images is not None:
        config = replace(config, data=replace(config.data, limit=images))
    return config


def _with_path(base: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {**base, "data": {**base["data"], "path": str(path)}}
