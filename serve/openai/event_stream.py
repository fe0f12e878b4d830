"""`EventStream`: one request's answer as server-sent events, from the first output to `[DONE]`.

The texts of several prompts come as they are written, an event for each, in one stream. If one of
them can't be written to its end the answer ends there, and the others are withdrawn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import Send

from serve.doors.http_answer import check_closed
from serve.engine.streams.stream_group import StreamGroup
from serve.models.limits import RefusedError
from serve.models.served_decoder import DecoderStream, ServedDecoder
from serve.openai.answer_form import DONE, AnswerForm, error_event
from serve.openai.completion_request import CompletionRequest
from serve.openai.error_object import error_object
from serve.openai.usage import usage_of
from serve.openai.writing import Writing

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 30.0
"""How long a client may take nothing, where the listener would wait for ever."""
_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream:
    """Sends the events of one request; `count` is told every error that ends one."""

    def __init__(
        self,
        request: CompletionRequest,
        decoder: ServedDecoder,
        opened: Sequence[DecoderStream],
        count: Callable[[RefusedError], None],
        *,
        timeout_s: float | None = SEND_TIMEOUT_S,
    ) -> None:
        """A client that takes nothing for `timeout_s` (None: for ever) is let go."""
        self._timeout_s = timeout_s
        self._request = request
        self._decoder = decoder
        self._group = StreamGroup([each.stream for each in opened])
        self._writings = [Writing(decoder, each, request) for each in opened]
        self._open = set(range(len(opened)))
        self._form = AnswerForm(request, decoder.spec.fingerprint)
        self._count = count

    async def send(self, send: Send, request_id: str) -> None:
        """Send all of it. Raises RefusedError, before anything was sent, where no output comes."""
        changed = await self._group.changed()
        for stream in (self._group.streams[index] for index in changed):
            if stream.outcome is not None and not stream.has_waiting:
                raise self._decoder.refusal(stream)
        head = [*_HEAD, (b"x-request-id", request_id.encode())]
        start = {"type": "http.response.start", "status": 200, "headers": head}
        try:
            await self._send(send, start)
            try:
                last = await self._send_pieces(send, changed)
            except TimeoutError:
                raise
            except Exception:  # it has begun, so what a bug of ours costs is said inside of it
                logger.exception("a stream failed as it was sent")
                last = self._error(RefusedError("internal", "an internal error; the log has it"))
            await self._send_body(send, last, more=False)
        except TimeoutError:  # there is nobody to tell: the listener closes what is not whole
            self._count(RefusedError("too_slow", "the client reads nothing"))
            self._group.cancel("too_slow")

    async def _send_pieces(self, send: Send, changed: list[int]) -> bytes:
        """Send text as it comes; return the last events."""
        events = self._form.role()
        while True:
            for index in [index for index in changed if index in self._open]:
                events += self._taken(index)
                outcome = self._group.streams[index].outcome
                if outcome is None:
                    continue
                if not outcome.is_complete:
                    return events + self._error(self._decoder.refusal(self._group.streams[index]))
                events += self._ended(index)
            if not self._open:
                return events + self._end()
            if events:
                await self._send_body(send, events)
            events = b""
            changed = await self._group.changed()

    def _taken(self, index: int) -> bytes:
        """Return the event of what has come of one text."""
        piece = self._writings[index].take(self._group.streams[index].waiting())
        return b"" if piece.is_empty else self._form.piece(index, piece, self._usage_in_each())

    def _ended(self, index: int) -> bytes:
        """Return the events behind one text that is whole."""
        self._open.remove(index)
        writing, form = self._writings[index], self._form
        last = writing.finish()
        events = b"" if last.is_empty else form.piece(index, last, self._usage_in_each())
        return events + form.end(index, writing.finish_reason, self._usage_in_each())

    def _end(self) -> bytes:
        """Return the events behind all texts: what they took."""
        usage = self._form.usage(usage_of(self._writings)) if self._request.includes_usage else b""
        return usage + DONE

    def _error(self, error: RefusedError) -> bytes:
        self._count(error)
        return error_event(error_object(error)) + DONE

    def _usage_in_each(self) -> dict[str, Any] | None:
        return usage_of(self._writings) if self._request.usage_in_each else None

    async def _send_body(self, send: Send, body: bytes, *, more: bool = True) -> None:
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": more})

    async def _send(self, send: Send, message: Any) -> None:
        """Send a part of an answer; who is not there any more is told elsewhere (`watch_client`).

        Raises TimeoutError where the client takes nothing for too long.
        """
        try:
            if self._timeout_s is None:  # of every token, so without a context for nothing
                await send(message)
                return
            async with asyncio.timeout(self._timeout_s):
                await send(message)
        except RuntimeError as error:
            check_closed(error)
