"""A bootstrap of the whole network by itself, in less memory, and by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet import define_supernet, load_checkpoint, save_checkpoint
from supernet.weights.import_network import imported_checkpoint
from training.bootstrap.bootstrap import bootstrap
from training.bootstrap.journal import begin, load_journal
from training.bootstrap.options import BootstrapOptions
from training.bootstrap.short_run import StepTimes
from training.bootstrap.start import PretrainedSource
from training.config import ConfigError
from training.data.array_folder import ArraySplit, write_array_folder
from training.run import train

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images`: two classes, dark and light; `net`: random weights of five classes."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)

    def split(count: int) -> ArraySplit:
        labels = np.arange(count) % 2
        pixels = rng.integers(0, 100, (count, 3, 8, 8)) + 100 * labels[:, None, None, None]
        return ArraySplit(pixels.astype(np.uint8), labels)

    write_array_folder(folder / "images", split(160), split(60), ("dark", "light"))
    definition = define_supernet("resnet_tiny", in_channels=3, num_classes=5)
    torch.manual_seed(0)
    state = definition.build().state_dict()
    save_checkpoint(imported_checkpoint(definition, state, name="net"), folder / "net")
    return folder


def options(inputs: Path, **changes: object) -> BootstrapOptions:
    source = PretrainedSource(str(inputs / "net"), "supernet")
    given = {"source": source, "data": str(inputs / "images"), "minutes": 1.0, "batch_size": 16}
    return BootstrapOptions(**{**given, "threads": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_whole_network_by_itself_is_trained_and_served_alone(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.bootstrap.bootstrap._FEWEST_STEPS", 3)
    # A step of all sizes would take ten times as long: none is made, so none is reckoned with.
    monkeypatch.setattr("training.bootstrap.bootstrap.timed_steps", lambda *_: StepTimes(1.2, 12.0))
    wanted = options(inputs, is_alone=True, micro_batch_size=8, activation_checkpointing=True)
    checkpoint = bootstrap(wanted, tmp_path, lambda c, out, goes_on: train(c, out, resume=goes_on))
    assert checkpoint is not None
    largest = checkpoint.definition.space.largest
    assert checkpoint.subnets[-1].accuracy > 0.8
    config = load_journal(tmp_path).config
    assert config["schedule"]["strategy"] == "single"
    assert config["schedule"]["steps"] >= 30
    assert (config["data"]["micro_batch_size"], config["activation_checkpointing"]) == (8, True)
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    watched = {name for line in lines for name in line if name.startswith("accuracy/")}
    assert watched == {f"accuracy/{largest.subnet_id}"}


@pytest.mark.slow
def test_two_processes_make_one_supernet(inputs: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "serve", "bootstrap", str(inputs / "net"), "--from", "supernet",
        "--data", str(inputs / "images"), "--out", str(tmp_path / "out"), "--minutes", "0.5",
        "--batch-size", "16", "--threads", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").exists()
    assert load_checkpoint(tmp_path / "out").subnets
    assert done.stderr.count("measuring the network as it is") == 1, "the first alone prepares"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode != 0
    assert "already holds a bootstrap; pass --resume" in again.stderr
    assert "the first process could not begin" in again.stderr


def test_what_is_wrong_is_said_before_anything_is_read(inputs: Path, tmp_path: Path) -> None:
    run = train  # never reached
    with pytest.raises(ConfigError, match=r"recipe.toml: no such file"):
        bootstrap(
            options(inputs, recipe=str(tmp_path / "recipe.toml")), tmp_path / "out",
            lambda c, out, goes_on: run(c, out, resume=goes_on),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="micro-batch size is -1, allowed 0 or more"):
        options(inputs, micro_batch_size=-1)


def test_a_journal_of_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    old = begin(tmp_path, {"minutes": 9.0}, resume=False)
    old.save(tmp_path)
    assert begin(tmp_path, {"minutes": 9.0, "micro_batch_size": 0}, resume=True).asked == old.asked
    with pytest.raises(ValueError, match="micro_batch_size: None then, 8 now"):
        begin(tmp_path, {"minutes": 9.0, "micro_batch_size": 8}, resume=True)
