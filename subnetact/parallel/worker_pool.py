"""`WorkerPool`: worker processes that are started, asked, watched and replaced.

A worker that ends, says nonsense or does not answer in time is killed and a new one is started at
once; the others keep their process and what they hold. The new one needs a second or two for its
weights, in which the others go on alone; then all meet in a new group.

Processes are forked from a server that has loaded torch and nothing else (`forkserver`): starting
one does not load it again, and no thread of this process is forked.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from subnetact.parallel.messages import Done, Failed, Join, Loaded, WorkerSpec
from subnetact.parallel.worker import work
from subnetact.parallel.worker_failure import WorkerFailedError

logger = logging.getLogger(__name__)

START_WITHIN_S = 60.0
SURVIVORS_WITHIN_S = 1.0
"""How long the others of an order may take to notice that one of them is gone."""

KILLED_WITHIN_S = 1.0
_PRELOADED = ["subnetact.parallel.worker", "supernet.families.decoder", "torch._dynamo"]
"""What every worker needs; shapes on the meta device import the last one, which takes seconds."""

_MOST_STARTS = 3  # in a row of one worker, until starting is given up


@dataclass(slots=True)
class _PoolWorker:
    spec: WorkerSpec
    process: BaseProcess
    connection: Any  # a pipe's end
    is_loaded: bool = False
    starts: int = 1


class WorkerPool:
    """The workers of one executor, by rank; used by one thread."""

    def __init__(self, specs: list[WorkerSpec], meeting_place: Path) -> None:
        """Start all; they load while this returns. `meeting_place` is an empty folder."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._place = meeting_place
        self._members = [self._started(spec) for spec in specs]
        self._ended: set[int] = set()  # and nobody was told yet
        self._num_groups = 0
        self.is_joined = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def process_ids(self) -> list[int]:
        """Of each worker, by rank."""
        return [member.process.pid or 0 for member in self._members]

    @property
    def ready(self) -> set[int]:
        """The workers that are loaded and, as far as is known, alive."""
        return {rank for rank, member in enumerate(self._members) if member.is_loaded}

    def notice(self) -> set[int]:
        """Replace workers that have ended; return whose memory is gone since it was asked last."""
        self._sweep()
        ended, self._ended = self._ended, set()
        return ended

    def wait_until_loaded(self) -> None:
        """Wait for all workers. Raises WorkerFailedError when one can't be started."""
        give_up_s = time.monotonic() + START_WITHIN_S
        while len(self.ready) < len(self._members):
            if time.monotonic() > give_up_s:
                raise WorkerFailedError(
                    f"workers have not loaded their weights in {START_WITHIN_S:g} s"
                )
            waiting = [m for m in self._members if not m.is_loaded]
            wait([*(m.connection for m in waiting), *(m.process.sentinel for m in waiting)], 0.5)
            self._sweep()

    def join(self) -> None:
        """Have all workers form a group. Raises WorkerFailedError; those to blame are replaced."""
        self.wait_until_loaded()
        path = self._place / f"group-{self._num_groups}"
        self._num_groups += 1
        if len(self._members) > 1:
            self.ask(dict.fromkeys(range(len(self._members)), Join(str(path))), 30.0)
        self.is_joined = True

    def ask(self, orders: Mapping[int, Any], within_s: float) -> dict[int, Done]:
        """Give orders to workers, return what each answered.

        Raises WorkerFailedError when one ends or takes longer, and it is replaced; RuntimeError
        when one says that its order failed. The group is gone then.
        """
        waiting = dict(orders)
        answers: dict[int, Done] = {}
        gone: dict[int, str] = {}
        for rank, order in orders.items():
            try:
                self._members[rank].connection.send(order)
            except OSError:  # a broken pipe: it has ended
                gone[rank] = "has ended"
        for rank in gone:
            del waiting[rank]
        give_up_s = time.monotonic() + (SURVIVORS_WITHIN_S if gone else within_s)
        failures: dict[int, str] = {}
        while waiting:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                break
            for rank in self._heard_from(list(waiting), left_s):
                del waiting[rank]
                answer = self._answer(rank)
                if isinstance(answer, Done):
                    answers[rank] = answer
                    continue
                (gone if answer is None else failures)[rank] = answer or "has ended"
                # From now on the others answer soon, or wait for what never comes.
                give_up_s = min(give_up_s, time.monotonic() + SURVIVORS_WITHIN_S)
        if not (gone or failures or waiting):
            return answers
        self.is_joined = False  # whoever failed has left its group
        gone |= dict.fromkeys(waiting, "does not answer")
        for rank in gone:
            self._replace(rank)
        told = "; ".join(f"worker {rank} {why}" for rank, why in sorted((failures | gone).items()))
        raise WorkerFailedError(told) if gone else RuntimeError(told)

    def close(self) -> None:
        """End all workers."""
        for member in self._members:
            member.connection.close()
        for member in self._members:
            member.process.join(1.0)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()

    def _sweep(self) -> None:
        for rank, member in enumerate(self._members):
            if not member.process.is_alive():
                self._replace(rank)
            elif not member.is_loaded and member.connection.poll():
                try:
                    member.is_loaded = isinstance(member.connection.recv(), Loaded)
                except (EOFError, OSError):
                    self._replace(rank)

    def _heard_from(self, ranks: list[int], timeout_s: float) -> list[int]:
        handles: dict[Any, int] = {}
        for rank in ranks:
            handles[self._members[rank].connection] = rank
            handles[self._members[rank].process.sentinel] = rank
        return sorted({handles[handle] for handle in wait(list(handles), timeout_s)})

    def _answer(self, rank: int) -> Done | str | None:
        """What a worker says: done, why not, or None: it has ended."""
        connection = self._members[rank].connection
        try:
            answer = connection.recv() if connection.poll() else None
        except (EOFError, OSError):
            return None
        return answer.reason if isinstance(answer, Failed) else answer

    def _replace(self, rank: int) -> None:
        """Start a worker anew; what the old one held is gone."""
        self.is_joined = False
        self._ended.add(rank)
        old = self._members[rank]
        starts = 1 if old.is_loaded else old.starts + 1
        old.connection.close()
        old.process.kill()
        old.process.join(KILLED_WITHIN_S)
        logger.error("worker %d (process %s) is replaced", rank, old.process.pid)
        if starts > _MOST_STARTS:
            raise WorkerFailedError(
                f"worker {rank} ended {_MOST_STARTS} times before it had loaded its weights, the "
                f"last time with exit code {old.process.exitcode}"
            )
        self._members[rank] = self._started(old.spec)
        self._members[rank].starts = starts

    def _started(self, spec: WorkerSpec) -> _PoolWorker:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(there, spec), name=f"shard-{spec.rank}", daemon=True
        )
        process.start()
        there.close()
        return _PoolWorker(spec, process, here)
