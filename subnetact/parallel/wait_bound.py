"""`WaitBound`: how long calls that follow each other may wait for workers, all together.

Whoever runs an iteration, and again what failed of it, is watched: were each call to wait for
itself, the sum would look like a device that hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class WaitBound:
    """Without a beginning every wait has the whole bound to itself; used by one thread."""

    def __init__(self, bound_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Bound nothing together yet."""
        self._bound_s = self._longest_s = bound_s
        self._clock = clock
        self._began_s: float | None = None

    @property
    def left_s(self) -> float:
        """How long may still be waited; 0 where that was too long already."""
        if self._began_s is None:
            return self._bound_s
        return max(0.0, self._began_s + self._longest_s - self._clock())

    def begin(self) -> None:
        """Take what is waited for from now on together."""
        self._began_s, self._longest_s = self._clock(), self._bound_s

    def end(self) -> None:
        """Let every wait stand for itself again."""
        self._began_s = None

    def extend(self, bound_s: float) -> None:
        """Allow as long in all, for something that takes longer than most."""
        self._longest_s = max(self._longest_s, bound_s)
