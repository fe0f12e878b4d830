"""Workers end with the process that they work for, however that ends; a stuck one stops nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel import fork_server, lifeline, worker_pool
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_failure import WorkerFailedError, WorkersLostError
from subnetact.parallel.worker_grid import WorkerGrid
from supernet import Checkpoint
from supernet.checkpoint import save_checkpoint

NAME = fork_server.__name__
SCRIPT = """
import sys
from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from supernet.checkpoint import load_checkpoint

if __name__ == "__main__":
    checkpoint = load_checkpoint(sys.argv[1])
    executor = ParallelExecutor(checkpoint, WorkerGrid(shards=2), extent_tokens=64)
    width = executor.subnet_ids[0]
    executor.run(width, [Chunk("a", (1,) * 80)])
    print(executor._temporary.name, *executor.process_ids, flush=True)
    while True:  # nobody closes it
        executor.run(width, [Chunk("b", (1,) * 80)])
        executor.release("b")
"""


def is_there(process_id: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["killed", "killed, a worker stopped", "interrupted", "terminated as a group"]
)
def test_no_worker_outlives_its_executor(decoder: Checkpoint, tmp_path: Path, way: str) -> None:
    save_checkpoint(decoder, tmp_path / "decoder")
    started = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "decoder")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with started as process:
        assert process.stdout is not None
        folder, *ids = process.stdout.readline().split()
        workers = [int(each) for each in ids]
        assert all(map(is_there, workers))
        assert Path(folder).is_dir()
        if way == "interrupted":
            os.killpg(process.pid, signal.SIGINT)
        elif way == "terminated as a group":
            os.killpg(process.pid, signal.SIGTERM)  # which workers leave to the executor
        else:
            if "stopped" in way:
                os.kill(workers[1], signal.SIGSTOP)
                time.sleep(0.2)
            process.kill()
        process.wait(10.0)
    give_up_s = time.monotonic() + 5.0
    while any(map(is_there, workers)) or list(Path(folder).parent.glob(f"{Path(folder).name}*")):
        assert time.monotonic() < give_up_s, f"{workers}, {folder}"
        time.sleep(0.02)


def test_a_worker_that_reads_nothing_holds_nobody_up(
    decoder: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that does not fit into the pipe of a stopped worker is given up."""
    monkeypatch.setattr(worker_pool, "_PIPE_STUCK_S", 0.2)
    executor = ParallelExecutor(decoder, WorkerGrid(shards=2), extent_tokens=64)
    try:
        os.kill(executor.process_ids[0], signal.SIGTERM)  # not its to act on
        os.kill(executor.process_ids[1], signal.SIGSTOP)
        before_s = time.monotonic()
        with pytest.raises(WorkerFailedError, match="worker 1 does not read"):
            executor._pool.ask({1: b"x" * 2**22}, 30.0)
        assert time.monotonic() - before_s < 5.0
        width = executor.subnet_ids[0]
        executor.run(width, [Chunk("a", (1,) * 80)])  # on both
        executor.close()
        with pytest.raises((WorkersLostError, OSError)):
            executor.run(width, [Chunk("a", (1,))])
    finally:
        executor.close()


def test_survivors_of_a_long_iteration_have_its_time_to_find_out(
    decoder: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who computes for longer than a second has not noticed yet that another one is gone."""
    executor = ParallelExecutor(decoder, WorkerGrid(shards=2), extent_tokens=64)
    try:
        asked: list[tuple[float, ...]] = []
        monkeypatch.setattr(executor, "_expected_s", lambda *_: 7.0)
        ask = executor._pool.ask

        def noted(orders, *bounds_s: float):
            asked.append(bounds_s)
            return ask(orders, *bounds_s)

        monkeypatch.setattr(executor._pool, "ask", noted)
        executor.run(executor.subnet_ids[0], [Chunk("a", (1,))])
        assert asked == [(140.0, 7.0)]
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("command", "killed"),
    [
        (f"python\0-c\0from multiprocessing.forkserver import main; main(['{NAME}'])", [7, 8]),
        ("python\0-c\0from multiprocessing.forkserver import main; main(['theirs'])", []),
        ("/sbin/init", []),
    ],
)
def test_only_the_server_of_workers_is_ended_with_what_it_forked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, killed: list[int]
) -> None:
    """Who loses its server before it asks for it has init as a parent, and its children beside."""
    (tmp_path / "7/task/7").mkdir(parents=True)
    (tmp_path / "7/task/7/children").write_text(f"8 {os.getpid()} ")
    (tmp_path / "7/cmdline").write_text(command)
    ended: list[int] = []
    monkeypatch.setattr(lifeline, "_PROCESSES", tmp_path)
    monkeypatch.setattr(lifeline.os, "kill", lambda process_id, _: ended.append(process_id))
    lifeline._kill_family(7)
    assert ended == killed
