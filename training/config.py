"""`TrainConfig`: everything a training run depends on, as frozen plain values.

Read from a TOML file and changed by `--set section.key=value`. An unknown key or a value of the
wrong type is an error that lists what is known; nothing is guessed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


class ConfigError(ValueError):
    """A configuration is malformed; the message names key, value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernetConfig:
    """Which supernet: a named variant, some of its config fields replaced."""

    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which images: scikit-learn's digits, or the array folder at `path`.

    `augment` is the strength of the augmentation (0: none) and `augmentation` its kind.
    `validation` is the share of a folder's training images that is held out.
    """

    name: Literal["digits", "folder"] = "digits"
    path: str = ""
    validation: float = 0.1
    batch_size: int = 32
    augment: float = 1.0
    augmentation: Literal["affine", "crop_flip"] = "affine"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Which subnets train when.

    `deps`: the full model alone for `delay` of the run, then max + min + random with a ramp of
    `ramp_epochs` (fractions allowed). `sandwich`: max + min + random from step 0 (BigNAS).
    `single`: the full model alone. `progressive`: OFA's phases with a frozen teacher (full model,
    then kernel, depth and expand become elastic one after the other). `compound`: one such phase,
    on archs whose dimensions grow together (CompOFA). The last two ignore delay and ramp.
    """

    strategy: Literal["deps", "sandwich", "progressive", "compound", "single"] = "deps"
    epochs: int = 8
    delay: float = 0.5
    ramp_epochs: float = 0.5
    random_subnets: int = 2
    sampler: Literal["uniform", "spread", "compound"] = "uniform"
    sort_channels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """SGD with Nesterov momentum, cosine learning rate; no weight decay on norms and biases.

    `clip_norm` bounds the norm of a step's whole gradient (0: no bound). `ema_decay` above 0
    keeps an exponential moving average of the weights, which is then what is evaluated and saved.
    """

    lr: float = 0.05
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    ema_decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Label smoothing for the full model; what subnets minimise against its soft outputs.

    `soft_ce`: cross-entropy with the teacher's probabilities. `alpha`: the larger of two
    alpha-divergences (-1 and 1), which also punishes over-confidence (AlphaNet).
    """

    label_smoothing: float = 0.1
    distillation: Literal["soft_ce", "alpha"] = "soft_ce"
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Which subnets are measured besides the space's ladder, and on how many images calibrated."""

    random_archs: int = 0
    calibration_images: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run. `threads` 0 leaves torch's default; `amp` auto uses bf16 in hardware."""

    supernet: SupernetConfig
    name: str = "supernet"
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    amp: Literal["auto", "bf16", "off"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        positive = {
            "data.batch_size": self.data.batch_size,
            "schedule.epochs": self.schedule.epochs,
            "optimizer.lr": self.optimizer.lr,
            "loss.temperature": self.loss.temperature,
            "evaluation.calibration_images": self.evaluation.calibration_images,
        }
        for name, value in positive.items():
            if value <= 0:
                raise ConfigError(f"{name} is {value}, expected a number above 0")
        if self.data.name == "folder" and not self.data.path:
            raise ConfigError("data.name is folder: give data.path, an array folder")
        if not 0.0 < self.data.validation < 1.0:
            raise ConfigError(f"data.validation is {self.data.validation}, allowed between 0 and 1")
        if not 0.0 <= self.schedule.delay <= 1.0:
            raise ConfigError(f"schedule.delay is {self.schedule.delay}, allowed 0 to 1")
        if not 0.0 <= self.optimizer.ema_decay < 1.0:
            raise ConfigError(
                f"optimizer.ema_decay is {self.optimizer.ema_decay}, allowed 0 to below 1"
            )
        if self.optimizer.clip_norm < 0:
            raise ConfigError(
                f"optimizer.clip_norm is {self.optimizer.clip_norm}, allowed 0 or more"
            )
        if self.schedule.ramp_epochs < 0 or self.schedule.random_subnets < 0:
            raise ConfigError("schedule.ramp_epochs and random_subnets must not be negative")


def load_config(path: str | Path, changes: Iterable[str] = ()) -> TrainConfig:
    """Read a TOML file and apply `section.key=value` changes.

    Raises ConfigError: no such file, malformed, unknown key, wrong type.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    for change in changes:
        _apply(data, change)
    return config_from_json(data, where=str(path))


def config_from_json(data: Mapping[str, Any], where: str = "config") -> TrainConfig:
    """Build the config from plain data. Raises ConfigError."""
    try:
        return _build(TrainConfig, data, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _apply(data: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {change!r}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, name = key.strip().split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change!r}: {section} is a value, not a section")
        data = inner
    data[name] = value


def _build(cls: type[_T], data: Mapping[str, Any], prefix: str) -> _T:
    assert is_dataclass(cls), "configs are dataclasses"
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(
            f"unknown key {', '.join(prefix + name for name in unknown)}; "
            f"known are {', '.join(prefix + name for name in known)}"
        )
    missing = [
        prefix + f.name
        for f in known.values()
        if f.name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in data.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}, expected a section")
        return _build(kind, value, f"{name}.")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is {value!r}, allowed {', '.join(get_args(kind))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = get_origin(kind) or kind
    wanted = dict if plain not in (int, float, str, bool) else plain
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{name} is {value!r}, expected {wanted.__name__}")
    return value
