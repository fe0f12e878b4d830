"""The state that a run resumes from: one safetensors file with its own description inside.

Tensors and description share a file, so they cannot disagree; it is replaced only when the new
one is whole, so a killed process or a full disk leaves the last good state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from supernet.subnets.sort import Permutations
from supernet.tensor_file import save_tensors
from training.config import TrainConfig, config_from_json
from training.trainer.optimization import OptimizationState

RESUME_FILE = "resume.safetensors"
# They do not bend the trajectory's meaning.
_FREE_TO_CHANGE = {
    *("threads", "device", "activation_checkpointing", "evaluation", "log", "data.workers")
}


class ResumeError(ValueError):
    """There is nothing to resume from, or it belongs to another run."""


class SaveError(RuntimeError):
    """A state could not be written, for want of space or rights; the last saved one is kept."""


class ResumeState(NamedTuple):
    """Everything that the next step depends on besides the config; tensors by parameter name.

    `teacher` is empty when the run has none, `strategy` when its strategy depends on the step only.
    """

    step: int
    permutation: Permutations | None
    strategy: list[float]
    parameters: dict[str, torch.Tensor]
    optimization: OptimizationState
    teacher: dict[str, torch.Tensor]
    loss_scale: Sequence[float] = ()


def save_resume_state(
    out: Path, config: TrainConfig, state: ResumeState, name: str = RESUME_FILE
) -> None:
    """Write the state into folder `out`. Raises SaveError; what was there before is kept."""
    groups = {
        "parameters": state.parameters,
        "momentum": state.optimization.momentum,
        "square": state.optimization.square,
        "average": state.optimization.average,
        "teacher": state.teacher,
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    described = {
        "step": state.step,
        "permutation": state.permutation,
        "strategy": state.strategy,
        "loss_scale": list(state.loss_scale),
        "num_updates": state.optimization.num_updates,
        "num_averaged": state.optimization.num_averaged,
        "config": asdict(config),
    }
    partial = out / f"{name}.partial"
    try:
        save_tensors(tensors, partial, metadata={"run": json.dumps(described)})
        partial.replace(out / name)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise SaveError(
            f"{out / name}: could not be written ({error}); the last saved state, if there is one, "
            "is kept: make room and go on with --resume"
        ) from None


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
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ResumeError(f"{path}: not a whole resume file ({error})") from None
    saved = asdict(config_from_json(_as_it_was(described["config"]), where=str(path)))
    _check_same_config(path, saved, asdict(config))
    return ResumeState(
        step=described["step"],
        permutation=described["permutation"],
        strategy=described.get("strategy", []),
        parameters=_under(tensors, "parameters/"),
        optimization=OptimizationState(
            momentum=_under(tensors, "momentum/"),
            square=_under(tensors, "square/"),
            average=_under(tensors, "average/"),
            num_updates=described.get("num_updates", 0),
            num_averaged=described["num_averaged"],
        ),
        teacher=_under(tensors, "teacher/"),
        loss_scale=described.get("loss_scale", ()),
    )


def _as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    """Keys that did not exist when a state was saved had the value that is their default now.

    But for `schedule.parts`, which was 1 before it existed. How a run is evaluated is free to
    change, so what was said of it then does not matter.
    """
    known = {name: value for name, value in config.items() if name != "evaluation"}
    return {**known, "schedule": {"parts": 1, **config["schedule"]}}


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _check_same_config(path: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    then, now = _flat(saved), _flat(asked)
    differing = [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not {key, key.partition(".")[0]} & _FREE_TO_CHANGE
    ]
    if differing:
        raise ResumeError(
            f"{path} is of a run with another config ({'; '.join(differing)}); "
            "resume with the same config or choose another --out"
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """`{"section.key": value}`, in JSON's types."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(config)).items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): entry for name, entry in inner.items()}
    return flat
