"""`StreamGroup`: open streams that are answered together, read as any of them gets on."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from serve.engine.streams.open_stream import NewsWaiter, OpenStream


class StreamGroup:
    """The streams of one request, in order; used in one event loop, by one task."""

    def __init__(self, streams: Sequence[OpenStream]) -> None:
        """Watch them from now on; nobody else may."""
        self.streams = tuple(streams)
        self._changed: dict[int, None] = {}  # in the order of their news
        self._news = NewsWaiter()
        for index, stream in enumerate(self.streams):
            stream.watch(functools.partial(self._note, index))

    async def changed(self) -> list[int]:
        """Return which have new outputs, or have ended, since the last call; wait for one.

        The waiting task's cancellation withdraws them all.
        """
        if not self._changed:
            await self._news.wait(self.cancel)
        changed, self._changed = self._changed, {}
        return list(changed)

    def cancel(self, reason: str = "cancelled") -> None:
        """Withdraw those that have not ended."""
        for stream in self.streams:
            stream.cancel(reason)

    def _note(self, index: int) -> None:
        self._changed[index] = None
        self._news.wake()
