"""Kill -9, a full disk, and the dip that the ramp prevents: what a run must survive."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from supernet import define_supernet
from training.config import load_config
from training.data.data import load_dataset
from training.trainer.trainer import Trainer

COMMAND = [sys.executable, "-m", "training", "--config", "configs/train_digits.toml",
           "--set", "supernet.variant=resnet_tiny", "--set", "threads=1",
           "--set", "data.batch_size=128", "--set", "schedule.epochs=14",
           "--set", "amp=off"]  # fmt: skip
# Limits the size of a file that the process may write, which is how a full disk looks to it.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.argv = ["training", *sys.argv[2:]]
runpy.run_module("training", run_name="__main__")
"""


def trainer_in(out: Path, *, resume: bool = False) -> Trainer:
    """The trainer that the command makes."""
    config = load_config(COMMAND[4], [word for word in COMMAND if "=" in word])
    definition = define_supernet(config.supernet.variant)
    out.mkdir(exist_ok=True)
    return Trainer(config, definition, load_dataset(config.data, config.seed), out, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the run that nothing interrupted."""
    trainer = trainer_in(tmp_path_factory.mktemp("whole"))
    assert trainer.run()
    return trainer.state()


def assert_ends_as(whole: dict[str, torch.Tensor], out: Path) -> None:
    resumed = trainer_in(out, resume=True)
    assert 0 < resumed.step < resumed.total_steps
    assert resumed.run()
    for name, tensor in whole.items():
        assert torch.equal(resumed.state()[name], tensor), name


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed_ends_with_the_same_weights(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([*COMMAND, "--out", str(out)], stderr=subprocess.DEVNULL)
    wait_for(lambda: (out / "log.jsonl").exists())  # one epoch is done
    time.sleep(random.Random().uniform(0.0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert_ends_as(whole, out)


def test_a_full_disk_while_saving_leaves_the_last_good_state(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    steps = iter(range(11))
    assert not trainer_in(out).run(should_stop=lambda: next(steps, None) is None)
    good = (out / "resume.safetensors").read_bytes()
    limited = [sys.executable, "-c", LIMITED, str(len(good) // 2), *COMMAND[3:]]
    full = subprocess.run(
        [*limited, "--out", str(out), "--resume"],
        stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert full.returncode == 2, full.stderr
    assert "resume.safetensors: could not be written" in full.stderr
    assert "make room and go on with --resume" in full.stderr
    assert "Traceback" not in full.stderr
    assert (out / "resume.safetensors").read_bytes() == good
    assert not list(out.glob("*.partial"))
    assert_ends_as(whole, out)


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
