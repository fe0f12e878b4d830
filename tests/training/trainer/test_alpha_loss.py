"""A run on the alpha-divergence learns; its loss was finite when it did not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supernet import define_supernet
from training.config import TrainConfig
from training.data.data import load_dataset
from training.evaluation.evaluate import evaluate, watched_archs
from training.trainer.trainer import Trainer


def test_a_hundred_steps_on_the_alpha_loss_are_far_above_a_tenth(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(
        data={"batch_size": 32},
        schedule={"steps": 100, "strategy": "sandwich", "parts": 1},
        loss={"distillation": "alpha", "label_smoothing": 0.0},
        optimizer={"lr": 0.05},
    )
    definition, data = define_supernet("resnet_tiny"), load_dataset("digits")
    trainer = Trainer(config, definition, data, tmp_path)
    assert trainer.run()
    measured = evaluate(
        trainer.state(), definition, watched_archs(definition.space), input_spec=data.input,
        calibration=data.train, calibration_images=256, held_out=data.validation,
    )  # fmt: skip
    assert min(s.accuracy for s in measured.subnets) > 0.3
