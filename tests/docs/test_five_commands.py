"""The README's five commands, from a checkpoint to a graphed deployment, run as they are printed.

Only the port and the length of the trace are others, and the checkpoint is a small one. The server
is a process of its own. `make demo` is the same on Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.cli import build_app

ROOT = Path.cwd()
SECTION = "## From a checkpoint to a served, replayed and graphed deployment"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^supernet .*", README.split(SECTION)[1].split("```")[1], re.MULTILINE)
PRINTED_S, REPLAYED_S = "duration=5", "duration=2"


@pytest.fixture
def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def folder(
    tmp_path: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder that the commands run in; it has the checkpoint that they name."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    for path in checkpoint_folder.iterdir():
        (tmp_path / "runs" / "digits" / path.name).symlink_to(path)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        yield tmp_path


def words_of(command: str, port: str) -> list[str]:
    words = shlex.split(command.removesuffix("&").replace("8000", port))
    assert words[0] == "supernet"
    return [word.replace(PRINTED_S, REPLAYED_S) for word in words[1:]]


def run(command: str, port: str) -> str:
    """Run a command to its end; return what it printed."""
    words = words_of(command, port)
    done = CliRunner().invoke(build_app(words), words)
    assert done.exit_code == 0, done.output
    return done.stdout


@contextlib.contextmanager
def started(command: str, port: str) -> Iterator[str]:
    """Run a command until the end of the context, which gets the first line that it printed."""
    assert command.endswith("&")
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *words_of(command, port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def test_there_are_five_commands():
    assert [command.split()[1] for command in COMMANDS] == [
        "profile", "serve", "replay", "top", "report",
    ]  # fmt: skip
    assert PRINTED_S in COMMANDS[2]


def test_a_checkpoint_is_served_replayed_and_graphed(folder: Path, port: str):
    profile, serve, replay, top, report = COMMANDS
    run(profile, port)
    with started(serve, port) as ready:
        assert ready.startswith("ready: serving tiny")
        run(replay, port)
        live, simulated = json.loads((folder / "runs" / "replay" / "report.json").read_text())
        assert live["num_queries"] == simulated["num_queries"] > 80
        assert live["outcomes"]["on_time"] > 0
        assert live["policy"] == "drainfit"
        assert "attainment" in run(top, port)
    run(report, port)
    page = (folder / "runs" / "report.html").read_text()
    assert "drainfit" in page
    assert "<svg" in page or "<img" in page
