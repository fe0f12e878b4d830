"""The full model does not dip at the switch with the ramp; without it, it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from supernet import define_supernet
from training.config import TrainConfig
from training.data.data import load_dataset
from training.evaluation.evaluate import measure
from training.trainer.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
BEFORE, AFTER, EVERY = 16, 40, 8  # steps around the switch, and between two measurements


def accuracies_around_the_switch(config: TrainConfig, out: Path) -> list[float]:
    """The full model's accuracy, calibrated, before and after the first step with subnets."""
    data = load_dataset("digits")
    definition = define_supernet("resnet_tiny")
    out.mkdir()
    trainer = Trainer(config, definition, data, out)
    switch = trainer.total_steps // 2
    accuracies: list[float] = []

    def watch(_report: object) -> None:
        if trainer.step >= switch - BEFORE and (trainer.step - switch) % EVERY == 0:
            measured = measure(
                trainer.state(), definition, definition.space.largest, input_spec=data.input,
                calibration=data.train, calibration_images=128, held_out=data.validation,
            )  # fmt: skip
            accuracies.append(measured.accuracy)

    trainer.run(progress=watch, should_stop=lambda: trainer.step >= switch + AFTER)
    return accuracies


def dip(accuracies: list[float]) -> float:
    """Mean before the switch less the lowest mean of two measurements after it."""
    known = BEFORE // EVERY + 1
    before, after = accuracies[:known], accuracies[known:]
    lowest = min(sum(after[i : i + 2]) / 2 for i in range(len(after) - 1))
    return sum(before) / len(before) - lowest


@pytest.mark.slow
def test_the_ramp_prevents_the_dip(make_config: MakeConfig, tmp_path: Path) -> None:
    dips = {}
    for ramp_epochs in (0.0, 3.0):
        config = make_config(
            data={"batch_size": 32},
            schedule={"epochs": 12, "ramp_epochs": ramp_epochs},
            optimizer={"lr": 0.2},
        )
        dips[ramp_epochs] = dip(accuracies_around_the_switch(config, tmp_path / str(ramp_epochs)))
    assert dips[3.0] < 0.01
    assert dips[0.0] > 0.03
