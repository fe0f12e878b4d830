"""`HttpAnswer`: a whole HTTP answer, and the way in which it is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple, Protocol

from starlette.types import Message, Receive, Scope, Send

from serve.doors import rest_messages
from serve.models.limits import RefusedError

SEND_WHOLE = "supernet.send_whole"
"""In the scope: sends status, headers and body at once; a listener of ours puts it there."""

Headers = Sequence[tuple[bytes, bytes]]
Respond = Callable[[int, Headers, bytes], None]
"""Sends status, headers and body at once, to whoever is still there."""
_JSON = b"application/json"
_ENCODINGS = (b"accept-encoding", b"identity")
_ELSEWHERE = (  # another server may: over a new connection
    "device_failed", "draining", "not_ready",
)  # fmt: skip
CLOSING = frozenset(("too_large", "too_slow", "unauthenticated", *_ELSEWHERE))
"""Reasons of refusals behind which a connection is closed, whatever was asked."""


class AtOnceDoor(Protocol):
    """What may answer a request without a task; see `RestDoor.answer_at_once`."""

    def answer_at_once(
        self, scope: Scope, receive: Receive, body: bytes | bytearray, respond: Respond
    ) -> bool: ...


class HttpAnswer(NamedTuple):
    """Status, body, its type, and further headers with names in lower case."""

    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def respond(self, respond: Respond, request_id: str) -> None:
        """Send it by a listener of ours, with the id of its request."""
        respond(self.status, self._all_headers(request_id), self.body)

    async def send(self, scope: Scope, send: Send, request_id: str) -> None:
        """Send it, with the id of its request; nobody may be there any more."""
        headers = self._all_headers(request_id)
        send_whole = scope.get(SEND_WHOLE)
        try:
            if send_whole is not None:
                await send_whole(self.status, headers, self.body)
                return
            start = {"type": "http.response.start", "status": self.status, "headers": headers}
            await send(start)
            await send({"type": "http.response.body", "body": self.body})
        except RuntimeError as error:
            check_closed(error)

    def _all_headers(self, request_id: str) -> Headers:
        return (
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", self.content_type),
            (b"x-request-id", request_id.encode()),
            *self.headers,
        )


def refusal(
    error: RefusedError, client_id: str | None = None, *, is_closing: bool = False
) -> HttpAnswer:
    """Return the answer that a refusal is; `client_id` is the id in the request itself."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s:
        seconds = math.ceil(error.retry_after_s)  # whole ones only
        headers.append((b"retry-after", b"%d" % seconds))
    if error.reason == "unauthenticated":
        headers.append((b"www-authenticate", b"Bearer"))
    if error.reason == "unsupported_encoding":
        headers.append(_ENCODINGS)
    if is_closing:
        headers.append((b"connection", b"close"))
    body = rest_messages.build_error(error, client_id)
    return HttpAnswer(error.http_status, body, _JSON, tuple(headers))


def last_answer(status: HTTPStatus, error: RefusedError) -> bytes:
    """Return the answer of a listener that closes the connection, as it is sent."""
    body = rest_messages.build_error(error)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def naming(send: Send, request_id: str) -> Send:
    """Return a `send` that puts the id on an answer of the framework's, to whoever is there."""

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            message = {**message, "headers": headers}
        try:
            await send(message)
        except RuntimeError as error:
            check_closed(error)

    return send_named


def check_closed(error: RuntimeError) -> None:
    """Raise an error of `send` again, unless it is of a connection that is closed."""
    if not is_closed(error):
        raise error


def is_closed(error: Exception) -> bool:
    """Whether an error is uvloop's for a connection that is closed.

    The client of a pipelined request may have gone before it is begun, and uvicorn does not say so;
    a storm of them would write a traceback each.
    """
    return isinstance(error, RuntimeError) and "the handler is closed" in str(error)
