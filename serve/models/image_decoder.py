"""`ImageDecoder`: decodes image files on threads, earliest deadline first, while in time.

Decoding holds a core for milliseconds, more than many a subnet: beyond its capacity it is the
bottleneck, and first come, first served would decode every image too late for the device to answer.
So it does what the scheduler does: the most urgent first, nothing that cannot be in time any more,
and a refusal at once for what would wait too long.

What a file takes is predicted by its bytes, from what the last ones took. A thread decodes while
the others of the process hold the interpreter in turn, so what it took counts them in.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf

import numpy as np

from serve.models.images import decode_images
from serve.models.limits import RefusedError

_MOST_THREADS = 4
_GAIN = 0.125  # of the moving average
_MOST_GROWTH = 4.0  # of one step of it: a file like no other is no forecast
_MARGIN = 1.3  # times what is predicted: files and neighbours differ


@dataclass(order=True)
class _DecodeJob:
    """One request's files; ordered by urgency."""

    deadline_s: float
    number: int
    until_s: float = field(compare=False)
    files: Sequence[bytes] = field(compare=False)
    shape: tuple[int, ...] = field(compare=False)
    done: asyncio.Future[np.ndarray] = field(compare=False)
    is_withdrawn: bool = field(default=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """The size of the files."""
        return sum(map(len, self.files))


class ImageDecoder:
    """Decodes image files on a few threads; at most `max_waiting` of them wait."""

    def __init__(
        self,
        *,
        max_pixels: int,
        max_waiting: int,
        num_threads: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_pixels = max_pixels
        self._max_waiting = max_waiting
        self._num_threads = num_threads or min(_MOST_THREADS, os.cpu_count() or 1)
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: list[_DecodeJob] = []  # a heap
        self._numbers = itertools.count()
        self._num_files = 0
        self._running: dict[int, tuple[float, int]] = {}  # job: start, bytes
        self._s_per_byte: float | None = None
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")

    async def decode(
        self,
        files: Sequence[bytes],
        shape: tuple[int, ...],
        *,
        deadline_s: float = inf,
        until_s: float = inf,
    ) -> np.ndarray:
        """Return the images as uint8 (B, C, H, W) of `shape`. Raises RefusedError.

        Who has the earliest `deadline_s` is decoded first. What cannot be decoded by `until_s` is
        `infeasible`: at once where the wait is predicted to be too long, else when its turn comes.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[np.ndarray] = loop.create_future()
        job = _DecodeJob(deadline_s, next(self._numbers), until_s, files, shape, done)
        with self._lock:
            self._admit(job)
            heapq.heappush(self._jobs, job)
            self._num_files += len(files)
        self._pool.submit(self._run_next, loop)
        try:
            return await done
        except asyncio.CancelledError:
            job.is_withdrawn = True
            raise

    def predicted_wait_s(self, job: _DecodeJob) -> float:
        """Return how long a job is predicted to take, the more urgent ones before it."""
        if self._s_per_byte is None:
            return 0.0
        now_s = self._clock()
        running_s = sum(
            max(0.0, start_s + size * self._s_per_byte - now_s)
            for start_s, size in self._running.values()
        )
        ahead = sum(other.num_bytes for other in self._jobs if other < job)
        return (running_s + ahead * self._s_per_byte) / self._num_threads + (
            job.num_bytes * self._s_per_byte
        )

    def close(self) -> None:
        """End the threads; what still waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, job: _DecodeJob) -> None:
        if self._num_files + len(job.files) > self._max_waiting:
            raise RefusedError("queue_full", "too many images wait to be decoded")
        if job.until_s == inf or not (self._jobs or self._running):
            return  # with nothing before it what it takes is found out, whatever was predicted
        wait_s = self.predicted_wait_s(job)
        if self._clock() + _MARGIN * wait_s > job.until_s:
            raise _too_late(wait_s)

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decode the most urgent job; on a thread of the pool, once for each job."""
        with self._lock:
            job = heapq.heappop(self._jobs)
            self._num_files -= len(job.files)
            start_s, size = self._clock(), job.num_bytes
            predicted_s = size * (self._s_per_byte or 0.0)
            is_late = start_s + (predicted_s if self._running or self._jobs else 0.0) > job.until_s
            if not (is_late or job.is_withdrawn):
                self._running[job.number] = start_s, size
        if job.is_withdrawn:
            return
        if is_late:
            _settle(loop, job.done, _too_late(predicted_s))
            return
        result: np.ndarray | Exception
        try:
            result = decode_images(job.files, job.shape, max_pixels=self._max_pixels)
        except Exception as error:  # handed to whoever waits
            result = error
        with self._lock:
            del self._running[job.number]
            if size and not isinstance(result, Exception):
                self._learn((self._clock() - start_s) / size)
        _settle(loop, job.done, result)

    def _learn(self, s_per_byte: float) -> None:
        before = self._s_per_byte
        if before is None:
            self._s_per_byte = s_per_byte
        else:
            self._s_per_byte = before + _GAIN * (min(s_per_byte, _MOST_GROWTH * before) - before)


def _too_late(wait_s: float) -> RefusedError:
    return RefusedError(
        "infeasible",
        "the image can't be decoded and answered before the deadline",
        retry_after_s=wait_s,
        earliest_finish_s=wait_s,
    )


def _settle(
    loop: asyncio.AbstractEventLoop,
    done: asyncio.Future[np.ndarray],
    result: np.ndarray | Exception,
) -> None:
    def settle() -> None:
        if done.done():
            return
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)
