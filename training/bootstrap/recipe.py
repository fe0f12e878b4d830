"""`BootstrapRecipe`: how pretrained weights become a supernet's, apart from data and time.

The two below are what configs/bootstrap_cnn.toml and configs/bootstrap_vit.toml hold too, for who
wants to change one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from supernet import SupernetDefinition
from training.config import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapRecipe:
    """Optimizer, rates to try, and when the smaller subnets begin.

    `lr` is the middle of the three rates that are tried (a third of it, it, three times it) for a
    batch of 64. `delay` is the share of the run that a new classifier gets with the whole network
    alone; `ramp` the share over which the smaller subnets' weight then climbs. `teacher` `auto` is
    a frozen copy of the whole network where its classes are those of the data, else the full model
    of the same step, which goes on learning them.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    ema_decay: float = 0.9995
    label_smoothing: float = 0.1
    delay: float = 0.25
    ramp: float = 0.1
    random_subnets: int = 2
    parts: int = 1
    teacher: Literal["auto", "frozen", "full_model"] = "auto"
    sampler: Literal["uniform", "spread", "flops", "compound"] = "spread"


CNN = BootstrapRecipe()
VIT = replace(CNN, optimizer="adamw", lr=1e-4, weight_decay=0.05, clip_norm=1.0)


def recipe_of(definition: SupernetDefinition) -> BootstrapRecipe:
    """The recipe for the kind of network, where none is given."""
    return CNN if definition.buffer_shapes() else VIT


def read_recipe(path: Path) -> BootstrapRecipe:
    """The recipe in a TOML file.

    Raises ConfigError: not TOML, an unknown key (lists the known), a value of another type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    return _recipe(values, path)


def _recipe(values: Mapping[str, Any], path: Path) -> BootstrapRecipe:
    known = {name: getattr(CNN, name) for name in BootstrapRecipe.__dataclass_fields__}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")
    for name, value in values.items():
        wanted = float | int if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name} is {value!r}, expected {_kind(known[name])}")
    return BootstrapRecipe(**values)


def _kind(value: object) -> str:
    return {float: "a number", int: "a whole number", str: "text"}[type(value)]
