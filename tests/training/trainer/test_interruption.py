"""Kill -9, a full disk, and the dip that the ramp prevents: what a run must survive."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from supernet import define_supernet
from training.cli import train
from training.config import load_config
from training.data.data import load_dataset
from training.trainer.trainer import Trainer

CONFIG = "configs/train_digits.toml"
CHANGES = ("supernet.variant=resnet_tiny", "threads=1", "data.batch_size=128", "amp=off")
SHORT, LONG = 4, 14  # epochs; long enough to be killed in


def arguments(out: Path, epochs: int) -> list[str]:
    """What the command is told."""
    changes = [*CHANGES, f"schedule.epochs={epochs}"]
    return ["--config", CONFIG, "--out", str(out), *(w for c in changes for w in ("--set", c))]


def trainer_in(out: Path, epochs: int, *, resume: bool = False) -> Trainer:
    """The trainer that the command makes."""
    config = load_config(Path(CONFIG), [*CHANGES, f"schedule.epochs={epochs}"])
    definition = define_supernet(config.supernet.variant)
    out.mkdir(exist_ok=True)
    return Trainer(config, definition, load_dataset(config.data, config.seed), out, resume=resume)


def assert_ends_as_if_nothing_had_happened(out: Path, epochs: int) -> None:
    whole = trainer_in(out.with_name("whole"), epochs)
    assert whole.run()
    resumed = trainer_in(out, epochs, resume=True)
    assert 0 < resumed.step < resumed.total_steps
    assert resumed.run()
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor), name


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "training", *arguments(out, LONG)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: (out / "log.jsonl").exists())  # one epoch is done
    time.sleep(random.Random().uniform(0.0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert_ends_as_if_nothing_had_happened(out, LONG)


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Limit the files that this process may write, which is how a full disk looks to it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_saving_leaves_the_last_good_state(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = iter(range(11))
    assert not trainer_in(out, SHORT).run(should_stop=lambda: next(steps, None) is None)
    good = (out / "resume.safetensors").read_bytes()
    app = typer.Typer()
    app.command()(train)
    with largest_file(len(good) // 2):
        full = CliRunner().invoke(app, [*arguments(out, SHORT), "--resume"])
    assert full.exit_code == 2, full.output
    said = " ".join(full.stderr.split())
    assert "resume.safetensors: could not be written" in said
    assert "make room and go on with --resume" in said
    assert "Traceback" not in said
    assert (out / "resume.safetensors").read_bytes() == good
    assert not list(out.glob("*.partial"))
    assert_ends_as_if_nothing_had_happened(out, SHORT)


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
