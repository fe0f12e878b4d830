"""A worker that dies while another one is awaited costs what it held, and is used again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.wait_bound import WaitBound
from subnetact.parallel.worker_failure import WorkerFailedError, WorkersLostError
from subnetact.parallel.worker_grid import WorkerGrid
from supernet import Checkpoint
from tests.subnetact.parallel.fake_workers import FakeWorker, FakeWorkers, install

WAIT_S = 10.0
Start = Callable[..., ParallelExecutor]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    return install(monkeypatch)


@pytest.fixture
def start(decoder: Checkpoint, fakes: FakeWorkers) -> Iterator[Start]:
    """Starts executors on fakes, with room for 16 blocks of 4 tokens on each shard."""
    sizes = {"capacity_tokens": 64, "block_tokens": 4, "extent_tokens": 4}
    with ExitStack() as stack:

        def started(grid: WorkerGrid, **more: Any) -> ParallelExecutor:
            executor = ParallelExecutor(decoder, grid, folder="nobody reads it", **sizes, **more)
            stack.callback(executor.close)
            return executor

        yield started


def die_once(fakes: FakeWorkers, rank: int, more: int = 0) -> None:
    """Let a worker end while its loading is awaited, after `more` starts that go well."""
    starts = 0

    def on_load(worker: FakeWorker) -> bool | None:
        nonlocal starts
        if worker.rank != rank:
            return None
        starts += 1
        if starts != 1 + more:
            return None
        assert fakes.is_awaited.wait(WAIT_S)
        worker.process.kill()
        return False

    fakes.on_load = on_load


def test_a_worker_that_dies_once_at_the_start_is_used(start: Start, fakes: FakeWorkers) -> None:
    die_once(fakes, 1)
    executor = start(WorkerGrid(shards=2))
    width = executor.subnet_ids[0]
    executor.run(width, [Chunk("a", (1,) * 8)])
    assert executor.table.capacity_tokens == 2 * 64
    assert executor.table.held("a") == [4, 4]
    assert executor.look_after() == ()


def test_a_stage_whose_replacement_dies_comes_back(start: Start, fakes: FakeWorkers) -> None:
    die_once(fakes, 1, more=1)
    executor = start(WorkerGrid(stages=2))
    width = executor.subnet_ids[0]
    executor.run(width, [Chunk("a", (1, 2, 3))])
    fakes.kill(1)
    assert executor.look_after() == ("a",)
    assert executor.look_after() == ()  # waits: the first replacement dies as it loads
    assert len(fakes.of(1)) == 3
    executor.release("a")
    executor.run(width, [Chunk("a", (1, 2, 3))])
    assert executor.is_whole


def kill_another(fakes: FakeWorkers, dying: int) -> None:
    """Let worker `dying` end while the replacement of another one is awaited."""

    def on_load(worker: FakeWorker) -> None:
        if worker.rank != dying:
            assert fakes.is_awaited.wait(WAIT_S)
            fakes.kill(dying)

    fakes.on_load = on_load


def test_nothing_is_read_from_a_worker_that_was_replaced_meanwhile(
    start: Start, fakes: FakeWorkers
) -> None:
    """Of three shards one is being replaced; of the two that a stream is on, one dies."""
    executor = start(WorkerGrid(shards=3))
    width = executor.subnet_ids[0]
    executor.run(width, [Chunk("a", (1,) * 8)])
    assert executor.table.held("a") == [4, 4, 0]
    kill_another(fakes, 1)
    fakes.kill(2)
    with pytest.raises(WorkerFailedError, match="'a' was with a worker that is gone"):
        executor.run(width, [Chunk("a", (1,))])
    assert not fakes.misread
    assert executor.look_after() == ("a",)
    executor.release("a")
    executor.run(width, [Chunk("a", (1,) * 12)])
    assert executor.table.held("a") == [4, 4, 4]


def test_what_was_placed_on_a_worker_that_died_meanwhile_is_placed_anew(
    start: Start, fakes: FakeWorkers
) -> None:
    """A prompt that nothing was computed of yet is no lost stream: it is run, and counted."""
    executor = start(WorkerGrid(shards=3))
    width = executor.subnet_ids[0]
    kill_another(fakes, 1)
    fakes.kill(2)
    executor.run(width, [Chunk("a", (1,) * 8)])
    executor.table.check_integrity()
    assert executor.table.length("a") == 8
    executor.run(width, [Chunk("a", (1,))])
    assert not fakes.misread


def test_a_worker_that_dies_as_soon_as_all_have_met_is_not_relied_on(
    start: Start, fakes: FakeWorkers
) -> None:
    executor = start(WorkerGrid(shards=3))
    width = executor.subnet_ids[0]
    executor.run(width, [Chunk("a", (1,) * 8)])
    joined = executor._pool.join

    def join(*within_s: float) -> None:
        joined(*within_s)
        fakes.kill(1)

    executor._pool.join = join
    fakes.kill(2)
    with pytest.raises(WorkerFailedError, match="ended as soon as all had met"):
        executor.run(width, [Chunk("a", (1,))])
    assert executor.look_after() == ("a",)
    assert not fakes.misread


@pytest.mark.parametrize("unmet", [2, 3])
def test_workers_that_do_not_meet_at_first_meet_again_and_not_for_ever(
    start: Start, fakes: FakeWorkers, unmet: int
) -> None:
    reasons = ["no route"] * unmet
    fakes.on_join = lambda worker: reasons.pop() if worker.rank == 1 and reasons else ""
    if unmet == 2:
        assert start(WorkerGrid(shards=2)).is_whole
    else:
        with pytest.raises(WorkersLostError, match="workers can't meet: worker 1 no route"):
            start(WorkerGrid(shards=2))


def test_iterations_wait_together_no_longer_than_one_may(
    start: Start, fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails is run again stream by stream: each would wait as long, and seem to hang."""
    executor = start(WorkerGrid(shards=3), hung_after_s=5.0)
    width = executor.subnet_ids[0]
    executor.run(width, [Chunk(name, (1,) * 8, False) for name in "abcd"])
    now_s = 0.0
    monkeypatch.setattr(executor._recovery, "waits", WaitBound(5.0, lambda: now_s))
    waits: list[float] = []
    join = executor._pool.join

    def in_vain(within_s: float) -> None:
        nonlocal now_s
        waits.append(within_s)
        now_s += within_s
        raise WorkerFailedError("workers have not loaded")

    monkeypatch.setattr(executor._pool, "join", in_vain)
    have_weights = threading.Event()
    fakes.on_load = lambda _: have_weights.wait(WAIT_S)
    fakes.kill(2)
    for _ in range(2):
        assert executor.look_after() == ()
        now_s += 2.0  # an iteration in which nobody answered, say
        for name in "abcd":
            with pytest.raises(WorkerFailedError):
                executor.run(width, [Chunk(name, (1,))])
        with pytest.raises(WorkerFailedError, match="awaited for as long as an iteration may"):
            executor.wait_until_whole()
        assert waits == [3.0]
        waits.clear()
    have_weights.set()
    executor._pool.wait_until_loaded(WAIT_S)
    executor.table.spread_from = 1000
    executor.run(width, [Chunk("alone", (1,) * 8)])  # which needs no others, nor that they meet
    assert not waits
    monkeypatch.setattr(executor._pool, "join", join)
    assert executor.look_after() == ()
    assert executor.is_whole
    executor.run(width, [Chunk(name, (1,)) for name in "abcd"])


def test_a_long_iteration_may_wait_longer() -> None:
    now_s = 0.0
    waits = WaitBound(5.0, lambda: now_s)
    now_s = 100.0
    assert waits.left_s == 5.0
    waits.begin()
    now_s = 104.0
    assert waits.left_s == 1.0
    waits.extend(8.0)
    now_s = 110.0
    assert waits.left_s == 0.0
    waits.begin()
    assert waits.left_s == 5.0
