from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from training.cli import train

OPTIONS = ["--config", "configs/train_digits.toml",
           "--set", "supernet.variant=resnet_tiny", "--set", "threads=1"]  # fmt: skip


def call(*arguments: str):
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [*OPTIONS, *arguments])


def test_ctrl_c_saves_and_resume_finishes(tmp_path: Path) -> None:
    long = ["--set", "schedule.epochs=400", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "training", *OPTIONS, *long]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "resume.safetensors").exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    told = next(line for line in stderr.splitlines() if "go on with: " in line)
    again = shlex.split(told.partition("go on with: ")[2])
    assert again == ["supernet", "train", *OPTIONS, *long, "--resume"]
    assert not (tmp_path / "supernet.json").exists()
    anew = call(*long)
    assert anew.exit_code == 2
    assert "already holds a run" in anew.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optimizer.lrr=1"], "unknown key optimizer.lrr"),
        (["--set", "supernet.variant=resnet21"], "unknown supernet 'resnet21'; known:"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = call(*arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_brackets_in_names_are_told_as_they_are(tmp_path: Path) -> None:
    """Read as markup, the name ended in an error, after training, and the folder was left out."""
    short = ["--set", "schedule.epochs=1", "--set", "data.limit=320", "--set", 'name="mine[/one]"']
    out = tmp_path / "[bold]"
    done = call(*short, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "mine[/one]" in done.stdout
    assert f"checkpoint: {out}\n" in done.stderr
