"""Workers that are threads: the real executor and pool on them, which start and die as a test says.

They compute nothing: logits are zeros. But each knows which slots it has written since it began, so
reading what it never held, which a fresh process answers with zeros of its cache, is a failure.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from subnetact.decoding.extents import Run
from subnetact.parallel import worker_pool
from subnetact.parallel.messages import Done, Failed, Iterate, Join, Loaded, WorkerSpec
from subnetact.parallel.worker_pool import WorkerPool

VOCABULARY = 128


class FakeProcess:
    """A worker's process as the pool sees it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.exitcode = pid, None
        self.sentinel, self._alive = os.pipe()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        if self.exitcode is None:
            self.exitcode = -signal.SIGKILL
            os.close(self._alive)

    def join(self, timeout: float | None = None) -> None:
        """It is gone as soon as it was killed."""


class FakeWorker:
    """One start of a worker, which takes orders on a thread of its own."""

    def __init__(self, fakes: FakeWorkers, spec: WorkerSpec) -> None:
        self.rank, self.written = spec.rank, set[int]()
        self._fakes = fakes
        self.here, self._there = multiprocessing.Pipe()
        self.process = FakeProcess(pid=1_000_000 + len(fakes.started))
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            if self._fakes.on_load(self) is False:
                return
            self._there.send(Loaded())
            while True:
                self._there.send(self._answer(self._there.recv()))
        except (EOFError, OSError):
            pass

    def _answer(self, order: Any) -> Done | Failed:
        if isinstance(order, Join):
            reason = self._fakes.on_join(self)
            return Failed(reason) if reason else Done()
        if not isinstance(order, Iterate):
            return Done()
        rows = 0
        for batch in order.micro_batches:
            rows += len(batch.sampled)
            for chunk in batch.chunks:
                past = _slots(chunk.reads.past)
                if past - self.written:
                    self._fakes.misread.append(self.rank)
                self.written |= _slots(fresh.run for fresh in chunk.reads.fresh)
        return Done(np.zeros((rows, VOCABULARY), np.float32))


class FakeWorkers:
    """All that a pool has started; `on_load` and `on_join` are called on a worker's thread.

    Where `on_load` returns False it never says that it has loaded; what `on_join` returns is why it
    does not meet the others, if it does not.
    """

    def __init__(self) -> None:
        self.started: list[FakeWorker] = []
        self.misread: list[int] = []
        self.on_load: Callable[[FakeWorker], bool | None] = lambda _: None
        self.on_join: Callable[[FakeWorker], str] = lambda _: ""
        self.is_awaited = threading.Event()  # whether a pool waits for workers to load

    def start(self, pool: WorkerPool, spec: WorkerSpec) -> Any:
        """In place of `WorkerPool._started`."""
        worker = FakeWorker(self, spec)
        self.started.append(worker)
        return worker_pool._PoolWorker(spec, worker.process, worker.here, time.monotonic())

    def of(self, rank: int) -> list[FakeWorker]:
        """The starts of one worker, in order."""
        return [worker for worker in self.started if worker.rank == rank]

    def kill(self, rank: int) -> None:
        """End a worker as it is now."""
        self.of(rank)[-1].process.kill()


def install(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    """Have pools start fakes until the test is over."""
    fakes = FakeWorkers()
    monkeypatch.setattr(WorkerPool, "_started", lambda pool, spec: fakes.start(pool, spec))
    wait = WorkerPool.wait_until_loaded

    def wait_until_loaded(pool: WorkerPool, within_s: float) -> None:
        fakes.is_awaited.set()
        try:
            wait(pool, within_s)
        finally:
            fakes.is_awaited.clear()

    monkeypatch.setattr(WorkerPool, "wait_until_loaded", wait_until_loaded)
    return fakes


def _slots(runs: Iterable[Run]) -> set[int]:
    return {slot for run in runs for slot in range(run.begin, run.begin + run.length)}
