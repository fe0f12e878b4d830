"""`WatchedFiles`: says when files have changed, without asking the system all the time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

LOOK_EVERY_S = 1.0


class WatchedFiles:
    """Files as they were when they were last looked at; a link counts as what it leads to."""

    def __init__(self, paths: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._seen = self._look()
        self._next_look_s = clock() + LOOK_EVERY_S

    def changed(self) -> bool:
        """Return whether they are others than the last time; looks once a second at the most."""
        now_s = self._clock()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_EVERY_S
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_signature(path) for path in self._paths]


def _signature(path: str) -> tuple[int, ...] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns
