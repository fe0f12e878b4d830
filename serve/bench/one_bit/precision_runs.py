"""Training runs of the precision table: each with its low-bit axis, resumed, measured once.

A run trains the float subnets and, beside them, one kind of low-bit weights; `none` has no such
axis, and is what int8 is made of. All have the same epochs, data and rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from serve.bench.journal import Journal
from serve.bench.rows import Tell
from serve.bench.training.cases import points_of
from supernet import Checkpoint, load_checkpoint
from supernet.low_bit.covered import low_bit_names
from supernet.subnets.agreement import top1_agreement
from training.config import LowBit, TrainConfig, config_from_json
from training.data.checkpoint_data import dataset_of
from training.evaluation.decoder import reported_windows
from training.evaluation.evaluate import evaluate
from training.evaluation.int8 import measure_int8, with_int8
from training.evaluation.low_bit import measure_low_bit, quantised_state, with_low_bit_entries
from training.run import train
from training.trainer.resume import RESUME_FILE

AXES: tuple[LowBit, ...] = ("none", "binary", "ternary", "signed_binary")
SIZES = ("min", "mid", "max")
_HEADER = "supernet.json"
_CIFAR: dict[str, Any] = {
    "name": "onebit",
    "threads": 1,
    "supernet": {"variant": "resnet20_cifar", "overrides": {"depths": [1, 1, 1]}},
    "data": {"name": "folder", "batch_size": 64, "augmentation": "crop_flip", "limit": 10_000},
    "schedule": {"epochs": 10, "delay": 0.5, "ramp_epochs": 1.0},
    "optimizer": {"lr": 0.05},
    "evaluation": {
        "calibration_images": 1024, "random_archs": 0, "search": 0, "uniform": False
    },
}  # fmt: skip


def cifar_config(data: Path) -> TrainConfig:
    """The run of the table: 10 epochs of 10,000 images of the array folder at `data`."""
    return config_from_json({**_CIFAR, "data": {**_CIFAR["data"], "path": str(data)}})


class PrecisionRuns:
    """Runs in a folder, each kept whole; what was measured is in `measured.jsonl` beside them."""

    def __init__(self, base: TrainConfig, folder: Path, *, tell: Tell):
        """`base` is what every run has besides its axis and seed."""
        self._base, self._folder, self._tell = base, folder, tell
        self._journal = Journal(folder / "measured.jsonl", asdict(base))

    def accuracies(self, axis: LowBit, seed: int) -> dict[str, dict[str, float]]:
        """Return {precision: {size: accuracy on test}} of one run, trained where it is not yet.

        A decoder's are `quality` and `perplexity` by precision and size, int8 by rounded weights.
        """
        measure = self._of_decoder if self.is_decoder else self._of_images
        return self._journal.once(f"{axis}-{seed}", partial(measure, axis, seed))

    @property
    def is_decoder(self) -> bool:
        """Whether the runs are of running text."""
        return self._base.data.name == "corpus"

    def checkpoint(self, axis: LowBit, seed: int) -> Checkpoint:
        """Return what a run made, going on with it where it was stopped."""
        out = self._folder / f"{axis}-{seed}"
        if (out / _HEADER).exists():
            return load_checkpoint(out)
        self._tell(f"  training {axis}, seed {seed}, in {out}")
        schedule = replace(self._base.schedule, low_bit=axis)
        config = replace(self._base, seed=seed, schedule=schedule)
        made = train(config, out, resume=(out / RESUME_FILE).exists())
        assert made is not None, "nothing stops it"
        return made

    def served(self, axis: LowBit, seed: int) -> Checkpoint:
        """Return the run's supernet serving three sizes, with int8 entries or one-bit ones."""
        floats = self._floats(axis, seed)
        data, images = dataset_of(floats), self._base.evaluation.calibration_images
        if axis == "none":
            measured = measure_int8(floats, data, tolerance=1.0, calibration_images=images)
            return with_int8(floats, measured)
        low_bit = measure_low_bit(floats, data, axis, calibration_images=images)
        return with_low_bit_entries(floats, low_bit)

    def _floats(self, axis: LowBit, seed: int) -> Checkpoint:
        """The run's supernet serving three sizes in float, their accuracies on test."""
        trained = self.checkpoint(axis, seed)
        data = dataset_of(trained)
        found = evaluate(
            trained.state,
            trained.definition,
            points_of(trained.definition, len(SIZES)),
            input_spec=trained.input,
            calibration=data.train,
            calibration_images=self._base.evaluation.calibration_images,
            held_out=data.test,
        )
        return trained.serving(found.subnets, found.norm_statistics, "test")

    def _of_images(self, axis: LowBit, seed: int) -> dict[str, dict[str, float]]:
        if axis == "none":
            served = self.served(axis, seed)
            other, accuracies = "int8", [s.accuracy for s in served.int8_subnets]
        else:
            served = self._floats(axis, seed)
            images = self._base.evaluation.calibration_images
            measured = measure_low_bit(served, dataset_of(served), axis, calibration_images=images)
            other, accuracies = axis, [m.accuracy for m in measured]
        floats = [s.accuracy for s in served.subnets]
        return {"fp32": _by_size(floats), other: _by_size(accuracies)}

    def _of_decoder(self, axis: LowBit, seed: int) -> dict[str, dict[str, float]]:
        trained = self.checkpoint(axis, seed)
        windows = reported_windows(dataset_of(trained))
        is_plain = axis == "none"
        other = "int8" if is_plain else axis
        state = _rounded(trained) if is_plain else quantised_state(trained, axis)
        found: dict[str, dict[str, float]] = {}
        for precision, weights in (("fp32", trained.state), (other, state)):
            archs = [subnet.arch for subnet in trained.subnets]
            agreed = top1_agreement(
                weights, trained.definition, archs, windows, reference=trained.state
            )
            found[f"{precision}/quality"] = {i: each.share for i, each in agreed.items()}
            found[f"{precision}/perplexity"] = {i: each.perplexity for i, each in agreed.items()}
        return found


def _by_size(accuracies: Iterable[float]) -> dict[str, float]:
    return dict(zip(SIZES, accuracies, strict=True))


def _rounded(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The state with feed-forwards rounded to int8 per row, as `Int8Linear` rounds them."""
    state = dict(checkpoint.state)
    for name in low_bit_names(checkpoint.definition):
        weight = state[name].float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127.0
        state[name] = (weight / scale).round() * scale
    return state
