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
from safetensors.torch import load_file

from supernet import define_supernet
from training.config import load_config
from training.data import load_dataset
from training.trainer import Trainer

COMMAND = [sys.executable, "-m", "training", "--config", "configs/train_digits.toml",
           "--set", "supernet.variant=resnet_tiny", "--set", "threads=1",
           "--set", "data.batch_size=128", "--set", "schedule.epochs=12",
           "--set", "amp=off"]  # fmt: skip
# Limits the size of a file that the process may write, which is how a full disk looks to it.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.argv = ["training", *sys.argv[2:]]
runpy.run_module("training", run_name="__main__")
"""


def finish(out: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--out", str(out), *extra],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    done = finish(out)
    assert done.returncode == 0, done.stderr
    return out


def test_killed_at_a_random_moment_and_resumed_ends_with_the_same_weights(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    draw = random.Random()
    process = subprocess.Popen([*COMMAND, "--out", str(out)], stderr=subprocess.DEVNULL)
    wait_for(lambda: (out / "log.jsonl").exists())  # one epoch is done
    time.sleep(draw.uniform(0.0, 0.8))
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert not (out / "supernet.json").exists(), "it was too quick to be killed"
    lines = len((out / "log.jsonl").read_text().splitlines())
    done = finish(out, "--resume")
    assert done.returncode == 0, done.stderr
    assert len((out / "log.jsonl").read_text().splitlines()) >= lines
    ours, theirs = (load_file(folder / "supernet.safetensors") for folder in (out, whole))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_a_full_disk_while_saving_leaves_the_last_good_state(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = load_config(COMMAND[4], [c for c in COMMAND if "=" in c])
    definition = define_supernet(config.supernet.variant)
    out.mkdir()
    trainer = Trainer(config, definition, load_dataset(config.data, config.seed), out)
    steps = iter(range(11))
    assert not trainer.run(should_stop=lambda: next(steps, None) is None)
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
    again = Trainer(config, definition, load_dataset(config.data, config.seed), out, resume=True)
    assert again.run()
    whole_weights = load_file(whole / "supernet.safetensors")
    assert torch.equal(again.weights.parameters["fc.weight"], whole_weights["fc.weight"])


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
