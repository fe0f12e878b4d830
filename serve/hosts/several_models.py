"""Several models in one deployment: settings of each, from those in common and its own.

Each becomes a `ServeConfig` of one model, so that whatever loads, checks and runs a model knows
nothing of the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from serve.config import ServeConfig, ServeConfigError, parse_config

_NAMED = re.compile(r"([A-Za-z0-9._-]+)=(.+)", re.DOTALL)


def each_model(config: ServeConfig) -> list[ServeConfig]:
    """Return one configuration for each model. Raises ServeConfigError that names the model."""
    if config.models is None:
        return [config]
    common = config.model_dump(exclude={"models"})
    configs: list[ServeConfig] = []
    for name, own in config.models.items():
        fields = {**common, **own.model_dump(exclude_none=True), "model_name": name}
        if own.record is None and config.record is not None:
            path = Path(config.record)
            fields["record"] = str(path.with_name(f"{path.stem}.{name}{path.suffix}"))
        try:
            configs.append(parse_config(fields))
        except ServeConfigError as error:
            raise ServeConfigError(f"model {name}: {error}") from None
    return configs


def named_options(option: str, values: Sequence[str]) -> dict[str, str]:
    """Read `name=PATH` options of a command line. Raises ServeConfigError for what has no name."""
    named: dict[str, str] = {}
    for value in values:
        found = _NAMED.fullmatch(value)
        if found is None:
            raise ServeConfigError(f"{option} {value} among several has no name, allowed NAME=PATH")
        name, path = found.groups()
        if name in named:
            raise ServeConfigError(f"{option} names {name} twice")
        named[name] = path
    return named


def model_settings(
    checkpoints: Sequence[str], profiles: Sequence[str]
) -> dict[str, str | dict[str, dict[str, str]]]:
    """Turn `--checkpoint` and `--profile` options into settings. Raises ServeConfigError.

    One checkpoint without a name serves one model; named ones serve one each.
    """
    is_one = len(checkpoints) <= 1 and len(profiles) <= 1
    if is_one and not (checkpoints and _is_named(checkpoints[0])):
        settings = {"checkpoint": checkpoints, "profile": profiles}
        return {key: values[0] for key, values in settings.items() if values}
    named = named_options("--checkpoint", checkpoints)
    models = {name: {"checkpoint": path} for name, path in named.items()}
    for name, path in named_options("--profile", profiles).items():
        models.setdefault(name, {})["profile"] = path
    return {"models": models}


def _is_named(value: str) -> bool:
    return _NAMED.fullmatch(value) is not None and not Path(value).exists()
