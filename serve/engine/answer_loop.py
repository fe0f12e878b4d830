"""`AnswerLoop`: the event loop that requests come from, as the device thread sees it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class AnswerLoop:
    """Calls functions in the loop that `bind` was called in; at once where there is none."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._wakes_soon = False

    def bind(self) -> asyncio.AbstractEventLoop:
        """Take the running loop, and return it."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        return self._loop

    def call(self, function: Callable[..., None], *args: object) -> None:
        """Call a function in the loop, from any thread."""
        if self._loop is None:
            function(*args)
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.warning("the event loop is closed: nobody is left to answer")

    def wake_soon(self, wake: Callable[[], None]) -> bool:
        """Have `wake` called once, at the end of this turn; return False, and don't, elsewhere.

        Then all that came in the turn is there, and goes into one batch; woken by the first the
        device takes that alone, and the two threads take the interpreter from each other for each.
        """
        if self._loop is None or threading.get_ident() != self._thread:
            return False
        if not self._wakes_soon:
            self._wakes_soon = True
            self._loop.call_soon(self._woken, wake)
        return True

    def _woken(self, wake: Callable[[], None]) -> None:
        self._wakes_soon = False
        wake()


def settle(future: asyncio.Future[None], error: Exception | None) -> None:
    """Give a future its result, or an error, unless it is done; in its loop."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
