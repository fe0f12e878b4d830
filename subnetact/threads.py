"""How many intra-op threads a thread computes with: torch keeps that count per thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ThreadCount:
    """Sets torch's thread count once per calling thread: torch keeps it per thread."""

    def __init__(self, threads: int | None):
        self._threads = threads
        self._done = threading.local()

    def use(self) -> None:
        """Make the calling thread compute with this many threads (None: as torch likes)."""
        if self._threads is not None and not getattr(self._done, "done", False):
            torch.set_num_threads(self._threads)
            self._done.done = True


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Have the calling thread compute with this many threads for a while (None: as it does)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
