"""`PayloadRing`: samples on their way from a door's process to the engine's, in shared memory.

A ring that one process writes and one reads, in order. Where samples lie travels in the message
that announces them (`FrameLink`), and how far the reader has come in messages back, so that the
kernel keeps the order and nothing is locked: a process may be killed at any point. The memory has
no name (memfd): when both processes are gone, so is it.

The reader copies what it takes (0.1 ms for 2.4 MB): the place is free at once, and what is checked
is what is computed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import NamedTuple

import numpy as np

_ALIGNMENT = 64


class RingPlace(NamedTuple):
    """Where samples lie, and how far the ring is filled with them (bytes written ever)."""

    offset: int
    filled: int


def make_memory(num_bytes: int) -> int:
    """Return the descriptor of memory without a name, of so many bytes."""
    file = os.memfd_create("supernet-door")
    os.ftruncate(file, num_bytes)
    return file


class PayloadRing:
    """One process' view of the memory behind a descriptor, which stays the caller's to close."""

    def __init__(self, file: int) -> None:
        self._size = os.fstat(file).st_size
        self._memory = mmap.mmap(file, self._size)
        self._view = memoryview(self._memory)
        self._filled = 0  # bytes that were written ever, with what was skipped at the end
        self._freed = 0  # of those, how many have been read

    @property
    def size(self) -> int:
        """The bytes of the ring."""
        return self._size

    def put(self, samples: np.ndarray) -> RingPlace | None:
        """Write samples and return where they lie; None while there is no room for them."""
        data = np.ascontiguousarray(samples).data.cast("B")
        count = -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        offset = self._filled % self._size
        skipped = self._size - offset if offset + count > self._size else 0
        if self._filled + skipped + count - self._freed > self._size:
            return None
        if skipped:
            offset = 0
        self._view[offset : offset + len(data)] = data
        self._filled += skipped + count
        return RingPlace(offset, self._filled)

    def free(self, filled: int) -> None:
        """Note that the reader has read up to there."""
        self._freed = filled

    def take(self, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return a copy of the samples at a place."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        return np.frombuffer(self._view, kind, count, offset).reshape(shape).copy()

    def close(self) -> None:
        """Give the memory back."""
        self._view.release()
        with contextlib.suppress(BufferError):  # a view of it lives on, and frees it when it ends
            self._memory.close()
