"""A run small enough for a test: 18,000 parameters, 8x8 digits, a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from training.config import TrainConfig, config_from_json

TINY: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "amp": "off",
    "supernet": {"variant": "resnet_tiny"},
    "data": {"batch_size": 128},
    "schedule": {"epochs": 4, "delay": 0.5, "ramp_epochs": 0.5},
    "evaluation": {"calibration_images": 256, "random_archs": 0, "search": 0},
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
