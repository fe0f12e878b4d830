"""The README's five commands, from a checkpoint to a graphed deployment, run as they are printed.

Only the port is another one, and the checkpoint is a small one. `make demo` is the same on Ray.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path.cwd()
SECTION = "## From a checkpoint to a served, replayed and graphed deployment"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^supernet .*", README.split(SECTION)[1].split("```")[1], re.MULTILINE)
TIMEOUT_S = 120


@pytest.fixture
def run(tmp_path: Path, checkpoint_folder: Path) -> Iterator[Callable[[str], str]]:
    """`run(command)` runs one, and returns what it printed; `... &` runs until the test ends."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    for path in checkpoint_folder.iterdir():
        (tmp_path / "runs" / "digits" / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    with contextlib.ExitStack() as stack:

        def start(command: str) -> subprocess.Popen[str]:
            words = shlex.split(command.removesuffix("&").replace("8000", port))
            assert words[0] == "supernet"
            process = subprocess.Popen(
                [sys.executable, "-m", "serve", *words[1:]], cwd=tmp_path, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(_end, process)
            return process

        def run(command: str) -> str:
            process = start(command)
            if command.endswith("&"):
                assert process.stdout is not None
                return process.stdout.readline()
            output, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
            return output

        yield run


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
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


def test_a_checkpoint_is_served_replayed_and_graphed(run: Callable[[str], str], tmp_path: Path):
    profile, serve, replay, top, report = COMMANDS
    run(profile)
    assert run(serve).startswith("ready: serving tiny")
    run(replay)
    live, simulated = json.loads((tmp_path / "runs" / "replay" / "report.json").read_text())
    assert live["num_queries"] == simulated["num_queries"] > 200
    assert live["outcomes"]["on_time"] > 0
    shown = run(top)
    assert "attainment" in shown
    assert live["policy"] == "drainfit"
    run(report)
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "drainfit" in page
    assert "<svg" in page or "<img" in page
