"""Runs small enough for a test: 18,000 parameters, 8x8 digits, a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet import Checkpoint, load_checkpoint
from training.config import TrainConfig, config_from_json
from training.data.array_folder import ArraySplit, write_array_folder
from training.data.data import load_dataset
from training.run import train

TINY: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "amp": "off",
    "supernet": {"variant": "resnet_tiny"},
    "data": {"batch_size": 128},
    "schedule": {"epochs": 4, "delay": 0.5, "ramp_epochs": 0.5},
    "evaluation": {"calibration_images": 256, "random_archs": 0, "search": 0},
}
DIGITS: dict[str, Any] = {
    "threads": 1,
    "amp": "off",
    "supernet": {"variant": "resnet_tiny"},
    "data": {"batch_size": 64},
    "schedule": {"epochs": 8, "delay": 0.4, "ramp_epochs": 1.0},
    "evaluation": {"calibration_images": 256, "random_archs": 6, "search": 4},
}


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """Build the tiny config with some sections' keys replaced."""

    def make(**sections: Any) -> TrainConfig:
        config = config_from_json(TINY)
        for name, value in sections.items():
            old = getattr(config, name)
            new = replace(old, **value) if isinstance(value, dict) else value
            config = replace(config, **{name: new})
        return config

    return make


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained on the digits, once for all tests that measure one; none changes it."""
    out = tmp_path_factory.mktemp("digits") / "trained"
    assert train(config_from_json(DIGITS), out) is not None
    return out


@pytest.fixture(scope="session")
def trained(trained_folder: Path) -> Checkpoint:
    """The same, loaded."""
    return load_checkpoint(trained_folder)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a user's array folder."""
    data = load_dataset("digits")
    parts = [split.take(torch.arange(len(split))) for split in (data.train, data.test)]
    train_split, test = (ArraySplit(p.images.numpy(), p.labels.numpy()) for p in parts)
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_array_folder(folder, train_split, test, [str(i) for i in range(10)])
    return folder
