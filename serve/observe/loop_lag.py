"""`LoopLag`: how long the event loop keeps waiting what has come.

The door has one thread. While it parses, whatever arrives lies in the kernel, and a clock that is
read when the loop gets there knows nothing of it: a stalled door would look like a fast one. A
timer says when the loop last was on time, and what is handed over after that has waited since then,
or for less: of a TCP connection the kernel knows (`socket_age.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator

INTERVAL_S = 0.01
WINDOW_S = 10
_ON_TIME_S = 0.001  # timers are that exact


class LoopLag:
    """The lag of one event loop, while it `runs`; 0 otherwise."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._stalled_s = 0.0  # of the turn in which the timer came late
        self._longest: deque[tuple[int, float]] = deque()  # second, the longest lag in it

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Follow the running loop for the length of a `with` block."""
        self._loop = asyncio.get_running_loop()
        self._schedule()
        try:
            yield
        finally:
            assert self._timer is not None, "scheduled"
            self._timer.cancel()
            self._loop = None

    def now_s(self) -> float:
        """Return how long what the loop hands over now may have waited, in seconds."""
        if self._loop is None:
            return 0.0
        late_s = max(self._loop.time() - self._due_s, self._stalled_s)
        return late_s if late_s > _ON_TIME_S else 0.0

    def longest_s(self) -> float:
        """Return the longest lag of the last ten seconds."""
        if self._loop is None:
            return 0.0
        self._forget(int(self._loop.time()))
        return max([self.now_s(), *(lag_s for _, lag_s in self._longest)])

    def _schedule(self) -> None:
        assert self._loop is not None, "it runs"
        self._due_s = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None, "it runs"
        now_s = self._loop.time()
        late_s = now_s - self._due_s
        if late_s > _ON_TIME_S:
            # uvloop calls timers before it looks at sockets, asyncio after: what lies in the
            # sockets has been handed over when the second call from now is made.
            self._stalled_s = late_s
            self._loop.call_soon(self._loop.call_soon, self._on_time)
            self._note(int(now_s), late_s)
        self._schedule()

    def _on_time(self) -> None:
        self._stalled_s = 0.0

    def _note(self, second: int, lag_s: float) -> None:
        if not self._longest or self._longest[-1][0] < second:
            self._longest.append((second, lag_s))
            self._forget(second)
        elif lag_s > self._longest[-1][1]:
            self._longest[-1] = (second, lag_s)

    def _forget(self, second: int) -> None:
        while self._longest and self._longest[0][0] <= second - WINDOW_S:
            self._longest.popleft()
