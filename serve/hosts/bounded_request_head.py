"""`BoundedHead`: uvicorn's HTTP/1.1 protocol for clients that never finish a request's head.

uvicorn waits for ever for the first request of a connection, and for the rest of a head that has
begun, and keeps all of it. Here a head has 30 seconds (from the connection, or from its first
byte) and 64 KiB; then the client gets 408 or 431, and the connection is closed. What follows
the head has bounds of its own (`doors/rest.py`), and an idle connection uvicorn's keep-alive
timeout.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 30.0
MOST_HEAD_BYTES = 64 * 2**10  # and what arrives in one piece


class BoundedHead(HttpToolsProtocol):
    """One connection. A head that comes whole costs two flags: the timer runs while one waits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        if self._head_bytes > MOST_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._head_timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(
            HEAD_TIMEOUT_S, self._refuse, HTTPStatus.REQUEST_TIMEOUT
        )

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        self._stop_timer()
        line = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        self.transport.write(line.encode() + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
