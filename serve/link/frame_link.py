"""`FrameLink`: messages between the processes of one server, over a pair of sockets.

A message is a row of plain values (msgpack's) that begins with its kind. All that is sent within
one turn of the event loop is one frame: one system call, whatever the load.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgpack

_LENGTH = struct.Struct("<I")
_ANY_TEXT = "surrogatepass"  # also what a client wrote as `\\ud800`: else the frame were lost

Handler = Callable[..., None]
"""Takes the values of a message behind its kind; never raises."""


class FrameLink(asyncio.Protocol):
    """One end; `handlers` by the kind of message, `on_lost` is called once the other end is gone.

    What is sent to who is gone is forgotten.
    """

    def __init__(self, handlers: Mapping[str, Handler], on_lost: Callable[[], None]) -> None:
        self._handlers = handlers
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: list[tuple[Any, ...]] = []
        self._received = b""

    @property
    def is_open(self) -> bool:
        """Whether the other end is there, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, *message: Any) -> None:
        """Send a message at the end of this turn of the event loop."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    def close(self) -> None:
        """Send what is left, and close this end."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._received:
            data = self._received + data
        start, size = 0, len(data)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            end = start + _LENGTH.size + length
            if end > size:
                break
            frame = memoryview(data)[start + _LENGTH.size : end]
            messages = msgpack.unpackb(frame, unicode_errors=_ANY_TEXT)
            start = end
            for kind, *values in messages:
                self._handlers[kind](*values)
        self._received = data[start:]

    def _flush(self) -> None:
        messages, self._unsent = self._unsent, []
        if messages and self.is_open:
            assert self._transport is not None, "open"
            frame = cast("bytes", msgpack.packb(messages, unicode_errors=_ANY_TEXT))
            self._transport.write(_LENGTH.pack(len(frame)) + frame)
