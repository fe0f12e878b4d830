"""`NewsWaiter`: where one task waits for news of streams, which end if it is cancelled there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class NewsWaiter:
    """Used in one event loop, by one task at a time."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, withdraw: Callable[[], None]) -> None:
        """Return at the next `wake`.

        A task that is cancelled meanwhile calls `withdraw` first: its client has gone.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            withdraw()
            raise
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Tell who waits, if anybody does, that there is news."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
