"""What is no text where a text file is expected is told as the user's error, with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.config import ServeConfigError, read_config_file
from slackfit.profile import LatencyProfile, ProfileError
from slackfit.streams.hardware import HardwareProfile
from supernet.weights.huggingface_folder import read_text
from supernet.weights.weight_files import WeightsError
from traces.generators.cascade import fitted
from traces.planning.catalog import load_catalog
from traces.trace import TraceError
from training.bootstrap.recipe import read_recipe
from training.config import ConfigError, load_config

NO_TEXT = b"\x89PNG\r\n\xff\xfe\x00"


@pytest.mark.parametrize(
    ("read", "error", "name"),
    [
        (LatencyProfile.load, ProfileError, "profile.json"),
        (HardwareProfile.load, ProfileError, "hardware.toml"),
        (lambda path: load_catalog(path, []), TraceError, "catalog.toml"),
        (fitted, TraceError, "fitted.json"),
        (read_config_file, ServeConfigError, "serve.toml"),
        (read_config_file, ServeConfigError, "serve.json"),
        (load_config, ConfigError, "train.toml"),
        (read_recipe, ConfigError, "recipe.toml"),
        (lambda path: read_text(path.parent), WeightsError, "tokenizer.json"),
    ],
)
def test_a_picture_is_no_text(
    read: Callable[[Path], Any], error: type[Exception], name: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(NO_TEXT)
    with pytest.raises(error, match=f"{name}.*'utf-8' codec can't decode"):
        read(file)
