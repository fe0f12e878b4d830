"""`ParseTurn`: what is long to parse is parsed one after the other, with room for others between.

Parsing holds the interpreter, so a thread would not help. Eight requests that come at once would
keep all others waiting eight times; in turn, each waits for one of them. After each the door
is left to the others for as long as it took.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

SMALL_BYTES = 16 * 2**10  # a millisecond


class ParseTurn:
    """The turn of one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def of(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait for the turn of a text of that size; a small one does not wait."""
        if num_bytes <= SMALL_BYTES:
            yield
            return
        await self._lock.acquire()
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        try:
            yield
        finally:
            loop.call_later(loop.time() - start_s, self._lock.release)
