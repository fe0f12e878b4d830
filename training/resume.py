"""The state that a run resumes from: one safetensors file with its own description inside.

Tensors and description share a file, so they cannot disagree; it is replaced only when the new
one is whole, so a killed process or a full disk leaves the last good state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supernet.sort import Permutations
from training.config import TrainConfig

RESUME_FILE = "resume.safetensors"
_FREE_TO_CHANGE = {"threads", "device", "evaluation"}  # they do not bend the trajectory's meaning


class ResumeError(ValueError):
    """There is nothing to resume from, or it belongs to another run."""


class ResumeState(NamedTuple):
    """Everything that the next step depends on besides the config; tensors by parameter name.

    `average` and `teacher` are empty when the run has none.
    """

    step: int
    permutation: Permutations | None
    num_averaged: int
    parameters: dict[str, torch.Tensor]
    momentum: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]


_TENSORS = ("parameters", "momentum", "average", "teacher")


def save_resume_state(out: Path, config: TrainConfig, state: ResumeState) -> None:
    """Write the state into folder `out`."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group in _TENSORS
        for name, tensor in getattr(state, group).items()
    }
    described = {
        "step": state.step,
        "permutation": state.permutation,
        "num_averaged": state.num_averaged,
        "config": asdict(config),
    }
    partial = out / f"{RESUME_FILE}.partial"
    save_file(tensors, partial, metadata={"run": json.dumps(described)})
    partial.replace(out / RESUME_FILE)


def load_resume_state(out: Path, config: TrainConfig) -> ResumeState:
    """Read the state from folder `out`.

    Raises ResumeError: no state, a damaged one, or one of a run with another config (names the
    differing keys).
    """
    path = out / RESUME_FILE
    if not path.is_file():
        raise ResumeError(f"{path}: no such file, there is nothing to resume; leave out --resume")
    try:
        with safe_open(path, framework="pt") as file:
            described: dict[str, Any] = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ResumeError(f"{path}: not a whole resume file ({error})") from None
    _check_same_config(path, described["config"], json.loads(json.dumps(asdict(config))))
    return ResumeState(
        step=described["step"],
        permutation=described["permutation"],
        num_averaged=described["num_averaged"],
        **{group: _under(tensors, f"{group}/") for group in _TENSORS},
    )


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _check_same_config(path: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = [
        f"{key}.{inner}: {_get(saved.get(key), inner)!r} then, {_get(asked[key], inner)!r} now"
        if isinstance(asked[key], dict)
        else f"{key}: {saved.get(key)!r} then, {asked[key]!r} now"
        for key in asked
        if key not in _FREE_TO_CHANGE
        for inner in (asked[key] if isinstance(asked[key], dict) else [""])
        if (_get(saved.get(key), inner) if inner else saved.get(key))
        != (_get(asked[key], inner) if inner else asked[key])
    ]
    if differing:
        raise ResumeError(
            f"{path} is of a run with another config ({'; '.join(differing)}); "
            "resume with the same config or choose another --out"
        )


def _get(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else None
