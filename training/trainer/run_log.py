"""What a run writes down while it trains: `log.jsonl`, and TensorBoard scalars if asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_EVERY_STEPS = 20  # between two scalars of a curve


class StepReport(NamedTuple):
    """What one step did: losses are means over the batch, `num_subnets` counts all passes.

    `full_loss` is None when the full model did not train, `subnet_loss` when it trained alone.
    """

    step: int
    total_steps: int
    lr: float
    full_loss: float | None
    subnet_loss: float | None
    num_subnets: int


class EpochReport(NamedTuple):
    """One epoch, or the part of one that a resumed run did; `also` are further figures by name.

    `num_images` are those read by all processes together, `cpu_s` the processor time of this one,
    all its threads together.
    """

    epoch: int
    steps: tuple[StepReport, ...]
    seconds: float
    cpu_s: float
    num_images: int
    also: Mapping[str, float]


class RunLog:
    """Appends to the files in `out`; without TensorBoard a step costs nothing."""

    def __init__(self, out: Path, *, tensorboard: bool):
        self._file = out / "log.jsonl"
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out / "tensorboard"))

    def add_step(self, report: StepReport) -> None:
        """Draw a point of the losses and of the learning rate, every few steps."""
        if self._writer is None or report.step % _EVERY_STEPS:
            return
        scalars = {
            "loss/full_model": report.full_loss,
            "loss/subnets": report.subnet_loss,
            "lr": report.lr,
            "subnets_per_step": report.num_subnets,
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, report.step)

    def add_epoch(self, report: EpochReport) -> None:
        """Write an epoch's line."""
        last = report.steps[-1]
        self.add_line(
            {
                "epoch": report.epoch,
                "step": last.step,
                "lr": last.lr,
                "full_loss": mean([step.full_loss for step in report.steps]),
                "subnet_loss": mean([step.subnet_loss for step in report.steps]),
                "subnets_per_step": last.num_subnets,
                "seconds": round(report.seconds, 3),
                "cpu_s": round(report.cpu_s, 3),
                "images_per_s": round(report.num_images / report.seconds, 1),
                **report.also,
            }
        )
        if self._writer is not None:
            for name, value in report.also.items():
                self._writer.add_scalar(name, value, last.step)
            self._writer.flush()

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Append one JSON object to `log.jsonl`."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there, None when none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
