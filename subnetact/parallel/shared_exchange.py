"""`SharedExchange`: workers of one machine show each other numbers in memory that they share.

A gather of a kilobyte over gloo takes 0.4 ms, of threads that are woken and sockets in between; a
block of a decoder takes one. Here each worker writes what it has into a region of its own, then a
number that says so, and waits for the others' numbers: first watching, then napping. It watches for
a millisecond, and for less after each time that this was not enough: where others want the cores as
well, who watches takes what the late one needs. Nobody waits for a worker that is gone: who naps
watches their processes as well, and who gives up says so in place of its number.

Regions are there twice, in turn: who is a gather ahead writes into the other one, and can't be two
ahead of anybody. That numbers written later are seen later is true of x86 processors alone, so only
there memory is shared; elsewhere, and where the system has no memory without a name, gloo is used.
"""

from __future__ import annotations

import logging
import mmap
import os
import platform
import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

logger = logging.getLogger(__name__)

ROOM = 2**18
"""Numbers of a region, a megabyte: what is larger goes in several turns."""

_MARK = 8  # marks of 8 bytes from one to the next: a cache line each
_LEFT = -1
_GLANCES = 100  # at a mark, some microseconds, between looks at the clock
_MOST_WATCH_S = 1e-3
_LEAST_WATCH_S = 2e-5
_SHORTEST_NAP_S, _LONGEST_NAP_S = 5e-5, 1e-3
_NAP_SHARE = 0.125  # of the time waited: who has waited for long may be a little later
_MOST_SHAPES = 64

Tell = Callable[[list[int]], list[list[int]]]
"""Tells numbers to all workers of a group, and returns what each has told, by rank."""


class SharedExchange:
    """One worker's end of memory that a group of workers shares; used by one thread."""

    def __init__(
        self,
        memory: mmap.mmap,
        rank: int,
        processes: Sequence[int],
        *,
        room: int = ROOM,
        is_watching: bool = True,
    ) -> None:
        """Take part as `rank` of as many as there are `processes`, in memory that is all zeros.

        `memory` has `memory_bytes`. `processes` are descriptors that can be read once a worker's
        process has ended (`os.pidfd_open`), which `leave` closes. Without `is_watching`, right
        where workers have no core each, a worker that waits naps at once.
        """
        size = len(processes)
        self._rank, self._size, self._room = rank, size, room
        self._processes = list(processes)
        self._marks = memoryview(memory)[: 8 * _MARK * size].cast("q")
        numbers = torch.frombuffer(
            memory, dtype=torch.float32, offset=8 * _MARK * size, count=2 * size * room
        )
        self._regions = numbers.view(2, size, room)
        self._others = [other for other in range(size) if other != rank]
        self._ended = select.poll()
        for other in self._others:
            self._ended.register(processes[other], select.POLLIN)
        self._most_watch_s = self._watch_s = _MOST_WATCH_S if is_watching else 0.0
        self._turn = 0
        self._views: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return the parts of all, (workers, *part.shape), valid until the next call.

        `part` is float32, and of one shape at all workers. Raises RuntimeError when another worker
        has ended or left.
        """
        if part.numel() > self._room:
            return self._gather_in_turns(part)
        views = self._views.get(part.shape) or self._make_views(part.shape)
        self._turn += 1
        own, whole = views[self._turn % 2]
        own.copy_(part)
        self._marks[_MARK * self._rank] = self._turn
        for other in self._others:
            self._wait(_MARK * other)
        return whole

    def leave(self) -> None:
        """Take no part any more; those that wait for this worker, or will, find out."""
        self._marks[_MARK * self._rank] = _LEFT
        while self._processes:
            os.close(self._processes.pop())

    def _gather_in_turns(self, part: torch.Tensor) -> torch.Tensor:
        flat = part.reshape(-1)
        parts = flat.new_empty(self._size, len(flat))
        for piece, into in zip(flat.split(self._room), parts.split(self._room, 1), strict=True):
            into.copy_(self.gather(piece))
        return parts.view(self._size, *part.shape)

    def _make_views(self, shape: torch.Size) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Views of the own region and of all of them, of either turn."""
        if len(self._views) >= _MOST_SHAPES:
            self._views.clear()
        wholes = [half[:, : shape.numel()].unflatten(1, shape) for half in self._regions]
        self._views[shape] = [(whole[self._rank], whole) for whole in wholes]
        return self._views[shape]

    def _learn(self, waited_s: float) -> None:
        """Watch for longer next time where watching was enough, for less where it was not.

        Who comes last has not waited, and has learnt nothing.
        """
        if not waited_s:
            return
        if waited_s < self._watch_s:
            self._watch_s = min(self._most_watch_s, 2.0 * self._watch_s)
        elif self._most_watch_s:
            self._watch_s = max(_LEAST_WATCH_S, 0.5 * self._watch_s)

    def _wait(self, at: int) -> None:
        """Wait until the mark at `at` says that its worker is where this one is."""
        marks, turn = self._marks, self._turn
        began_s = waited_s = 0.0
        while True:
            for _ in range(_GLANCES):
                if marks[at] >= turn:
                    self._learn(waited_s)
                    return
            if marks[at] == _LEFT:
                raise RuntimeError("another worker has left the group")
            waited_s = time.monotonic() - began_s if began_s else 0.0
            began_s = began_s or time.monotonic()
            if waited_s < self._watch_s:
                continue
            if self._ended.poll(0) and marks[at] < turn:
                raise RuntimeError("another worker of the group has ended")
            time.sleep(min(_LONGEST_NAP_S, max(_SHORTEST_NAP_S, _NAP_SHARE * waited_s)))


def memory_bytes(size: int, room: int = ROOM) -> int:
    """Return how many bytes `size` workers share: a mark each, and two regions."""
    return 8 * _MARK * size + 2 * 4 * size * room


def can_share_memory() -> bool:
    """Whether workers can share memory here: on Linux, on a processor that orders writes."""
    is_ordered = platform.machine() in ("x86_64", "AMD64")
    return is_ordered and hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")


def share_memory(
    rank: int, size: int, tell: Tell, *, is_watching: bool = True
) -> SharedExchange | None:
    """Meet the other workers in new memory; None, at all of them, where one of them can't.

    The memory has no name: the first worker tells the number of its descriptor, under which the
    others open it, so nothing is left behind however they end. All call this at once. Raises what
    `tell` raises.
    """
    length = memory_bytes(size)
    descriptor = _make_memory(length) if rank == 0 else None
    try:
        told = tell([os.getpid(), -1 if descriptor is None else descriptor])
        found: SharedExchange | None = None
        try:
            memory = _map(rank, descriptor, told[0], length)
            found = _take_part(memory, rank, [number for number, _ in told], is_watching)
        except (OSError, ValueError) as error:
            logger.warning("worker %d shares no memory with the others: %s", rank, error)
        with ExitStack() as stack:
            if found is not None:
                stack.callback(found.leave)
            if all(can for (can,) in tell([int(found is not None)])):
                stack.pop_all()
                return found
        return None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take_part(
    memory: mmap.mmap, rank: int, process_ids: Sequence[int], is_watching: bool
) -> SharedExchange:
    """Watch the others' processes, and nothing where that or anything else can't be."""
    with ExitStack() as stack:
        processes = _open_processes(process_ids)
        for process in processes:
            stack.callback(os.close, process)
        found = SharedExchange(memory, rank, processes, is_watching=is_watching)
        stack.pop_all()
        return found


def _make_memory(length: int) -> int | None:
    """A descriptor of new memory, all zeros; None where there is none to be had."""
    try:
        descriptor = os.memfd_create("supernet-workers", os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        os.truncate(descriptor, length)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open_processes(process_ids: Sequence[int]) -> list[int]:
    """Descriptors of processes; they say when those end. Raises OSError: one has ended already."""
    with ExitStack() as stack:
        opened: list[int] = []
        for process_id in process_ids:
            opened.append(os.pidfd_open(process_id))
            stack.callback(os.close, opened[-1])
        stack.pop_all()
        return opened


def _map(rank: int, own: int | None, told: Sequence[int], length: int) -> mmap.mmap:
    """Map the first worker's memory: `told` are its process id and its descriptor."""
    if rank == 0 and own is not None:
        return mmap.mmap(own, length)
    process_id, number = told
    descriptor = os.open(f"/proc/{process_id}/fd/{number}", os.O_RDWR)  # no such: OSError
    try:
        return mmap.mmap(descriptor, length)
    finally:
        os.close(descriptor)
