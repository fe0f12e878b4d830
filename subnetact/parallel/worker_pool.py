"""`WorkerPool`: worker processes that are started, asked, watched and replaced.

A worker that ends, says nonsense or does not answer in time is killed and a new one is started at
once; the others keep their process and what they hold. The new one needs a second or two for its
weights, in which the others go on alone; then all meet in a new group.

Processes are forked from a server that has loaded torch and nothing else (`forkserver`): starting
one does not load it again, and no thread of this process is forked. None outlives this process,
however that ends (`worker.py`); the server neither, which leaves SIGTERM to it (`fork_server.py`).
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import socket
import struct
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from subnetact.parallel import fork_server
from subnetact.parallel.messages import Done, Failed, Join, Loaded, WorkerSpec
from subnetact.parallel.worker import work
from subnetact.parallel.worker_failure import WorkerFailedError, WorkersLostError

logger = logging.getLogger(__name__)

START_WITHIN_S = 60.0
SURVIVORS_WITHIN_S = 1.0
"""How long the others of an order may take at least to notice that one of them is gone."""

MEET_WITHIN_S = 5.0
_MORE_S = 1.0  # for the answer that they have met, or not
_KILLED_WITHIN_S = 1.0
_ENDED_WITHIN_S = 1.0
_PIPE_STUCK_S = 2.0  # a worker that is stopped neither reads nor goes on writing
_PRELOADED = [
    fork_server.__name__,
    "subnetact.parallel.worker",
    "supernet.families.decoder",
    "torch._dynamo",  # which shapes on the meta device import, and takes seconds
]
"""What makes the server stay, then what every worker needs."""

_MOST_STARTS = 3  # in a row of one worker, until starting is given up
_MOST_UNMET = 3  # groups in a row that did not come about, though all workers were there

_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register  # after multiprocessing's own, so before it: that waits for what ignores SIGTERM
def _close_open_pools() -> None:
    for pool in list(_open_pools):
        pool.close()


@dataclass(slots=True)
class _PoolWorker:
    spec: WorkerSpec
    process: BaseProcess
    connection: Any  # a pipe's end
    started_s: float
    is_loaded: bool = False
    starts: int = 1


class WorkerPool:
    """The workers of one executor, by rank; used by one thread."""

    def __init__(self, specs: list[WorkerSpec], meeting_place: Path) -> None:
        """Start all; they load while this returns. `meeting_place` is an empty folder."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._place = meeting_place
        self._is_closed = False
        self._members = [self._started(spec) for spec in specs]
        self._ended: set[int] = set()  # and nobody was told yet
        self._num_groups = self._num_unmet = 0
        self.is_joined = False
        _open_pools.add(self)

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
        """Replace workers that have ended; return whose memory is gone since it was asked last.

        Raises WorkersLostError when one can't be started.
        """
        self._sweep()
        ended, self._ended = self._ended, set()
        return ended

    def wait_until_loaded(self, within_s: float) -> None:
        """Wait for all workers. Raises WorkerFailedError when they take longer.

        WorkersLostError when one can't be started.
        """
        give_up_s = time.monotonic() + within_s
        while len(self.ready) < len(self._members):
            if time.monotonic() > give_up_s:
                raise WorkerFailedError(f"workers have not loaded their weights in {within_s:g} s")
            waiting = [m for m in self._members if not m.is_loaded]
            wait([*(m.connection for m in waiting), *(m.process.sentinel for m in waiting)], 0.5)
            self._sweep()

    def join(self, within_s: float = START_WITHIN_S) -> None:
        """Have all workers form a group, once they have loaded (`wait_until_loaded`).

        Raises WorkerFailedError when one goes meanwhile, RuntimeError when they do not meet,
        WorkersLostError when they still do not after several times.
        """
        self.wait_until_loaded(within_s)
        path = self._place / f"group-{self._num_groups}"
        self._num_groups += 1
        if len(self._members) > 1:
            orders = dict.fromkeys(range(len(self._members)), Join(str(path), MEET_WITHIN_S))
            try:
                self.ask(orders, MEET_WITHIN_S + _MORE_S)
            except WorkerFailedError:
                raise
            except RuntimeError as error:
                self._num_unmet += 1
                if self._num_unmet < _MOST_UNMET:
                    raise
                raise WorkersLostError(f"workers can't meet: {error}") from error
        self._num_unmet = 0
        self.is_joined = True

    def ask(
        self,
        orders: Mapping[int, Any],
        within_s: float,
        survivors_within_s: float = SURVIVORS_WITHIN_S,
    ) -> dict[int, Done]:
        """Give orders to workers, return what each answered.

        Raises WorkerFailedError when one ends or takes longer, and it is replaced; RuntimeError
        when one says that its order failed. The group is gone then. Once one is gone the others
        have `survivors_within_s` to find out and say so.
        """
        answers: dict[int, Done] = {}
        gone = self._give(orders)
        waiting = {rank for rank in orders if rank not in gone}
        give_up_s = time.monotonic() + (survivors_within_s if gone else within_s)
        failures: dict[int, str] = {}
        while waiting:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                break
            for rank, has_spoken in sorted(self._heard_from(waiting, left_s).items()):
                waiting.remove(rank)
                answer = self._answer(rank) if has_spoken else None
                if isinstance(answer, Done):
                    answers[rank] = answer
                    continue
                (gone if answer is None else failures)[rank] = answer or "has ended"
                # From now on the others answer soon, or wait for what never comes.
                give_up_s = min(give_up_s, time.monotonic() + survivors_within_s)
        if not (gone or failures or waiting):
            return answers
        self.is_joined = False  # whoever failed has left its group
        gone |= dict.fromkeys(waiting, "does not answer")
        for rank in gone:
            self._replace(rank)
        told = "; ".join(f"worker {rank} {why}" for rank, why in sorted((failures | gone).items()))
        raise WorkerFailedError(told) if gone else RuntimeError(told)

    def close(self) -> None:
        """End all workers; nothing can be asked any more."""
        self._is_closed = True
        _open_pools.discard(self)
        for member in self._members:
            member.connection.close()
        give_up_s = time.monotonic() + _ENDED_WITHIN_S
        for member in self._members:
            member.process.join(max(0.0, give_up_s - time.monotonic()))
            if member.process.is_alive():
                member.process.kill()
        for member in self._members:
            member.process.join(_KILLED_WITHIN_S)

    def _sweep(self) -> None:
        for rank, member in enumerate(self._members):
            if not member.process.is_alive():
                self._replace(rank)
            elif not member.is_loaded and member.connection.poll():
                try:
                    member.is_loaded = isinstance(member.connection.recv(), Loaded)
                except (EOFError, OSError):
                    self._replace(rank)
            elif not member.is_loaded and time.monotonic() > member.started_s + START_WITHIN_S:
                self._replace(rank)  # it hangs

    def _give(self, orders: Mapping[int, Any]) -> dict[int, str]:
        """Send orders; return to whom that can't be done, and why."""
        gone: dict[int, str] = {}
        for rank, order in orders.items():
            try:
                self._members[rank].connection.send(order)
            except BlockingIOError:
                gone[rank] = "does not read"
            except OSError:  # a broken pipe
                gone[rank] = "has ended"
        return gone

    def _heard_from(self, ranks: Iterable[int], timeout_s: float) -> dict[int, bool]:
        """Which workers have spoken (True), or have ended without a word (False)."""
        handles: dict[Any, tuple[int, bool]] = {}
        for rank in ranks:
            handles[self._members[rank].connection] = (rank, True)
            handles[self._members[rank].process.sentinel] = (rank, False)
        heard: dict[int, bool] = {}
        for handle in wait(list(handles), timeout_s):
            rank, has_spoken = handles[handle]
            heard[rank] = has_spoken or heard.get(rank, False)
        return heard

    def _answer(self, rank: int) -> Done | str | None:
        """What a worker says: done, why not, or None: it has ended, or stopped in the middle."""
        try:
            answer = self._members[rank].connection.recv()
        except (EOFError, OSError):
            return None
        return answer.reason if isinstance(answer, Failed) else answer

    def _replace(self, rank: int) -> None:
        """Start a worker anew; what the old one held is gone."""
        if self._is_closed:
            raise WorkersLostError("these workers were ended")
        self.is_joined = False
        self._ended.add(rank)
        old = self._members[rank]
        starts = 1 if old.is_loaded else old.starts + 1
        old.connection.close()
        old.process.kill()
        old.process.join(_KILLED_WITHIN_S)
        logger.error("worker %d (process %s) is replaced", rank, old.process.pid)
        if starts > _MOST_STARTS:
            raise WorkersLostError(
                f"worker {rank} ended {_MOST_STARTS} times before it had loaded its weights, the "
                f"last time with exit code {old.process.exitcode}"
            )
        self._members[rank] = self._started(old.spec)
        self._members[rank].starts = starts

    def _started(self, spec: WorkerSpec) -> _PoolWorker:
        here, there = self._context.Pipe()
        _bound(here)
        process = self._context.Process(
            target=work, args=(there, spec), name=f"shard-{spec.rank}", daemon=True
        )
        process.start()
        there.close()
        return _PoolWorker(spec, process, here, time.monotonic())


def _bound(connection: Any) -> None:
    """Have reads and writes of a pipe's end fail (BlockingIOError) that would wait for long.

    The other end may be stopped in the middle of a message, or never read.
    """
    seconds, rest = divmod(_PIPE_STUCK_S, 1.0)
    limit = struct.pack("ll", int(seconds), int(rest * 1e6))  # a timeval
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
