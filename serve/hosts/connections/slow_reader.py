"""`SlowReader`: how long what was written may wait for a client that does not read it.

That is what is above uvicorn's low-water mark, and keeps writing paused, or any byte at all that
holds up a close: a close alone would wait for the client to read the rest.
"""

from __future__ import annotations

import asyncio

READ_TIMEOUT_S = 30.0


class SlowReader:
    """The client of one connection, which is aborted where it reads next to nothing for so long."""

    __slots__ = ("_timer", "is_given_up")

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self._timer: asyncio.TimerHandle | None = None
        self.is_given_up = False

    def wait(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Give the client its time from now on, unless that runs already."""
        if self._timer is None:
            self._timer = loop.call_later(READ_TIMEOUT_S, self._give_up, transport)

    def has_read(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, transport: asyncio.Transport) -> None:
        self.is_given_up = True
        transport.abort()
