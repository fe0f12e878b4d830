"""`EventStream`: one request's answer as server-sent events, from the first output to `[DONE]`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Send

from serve.doors.http_answer import check_closed
from serve.engine.open_stream import StreamOutput
from serve.models.limits import RefusedError
from serve.models.served_decoder import DecoderStream, ServedDecoder
from serve.openai.answer_form import DONE, AnswerForm, error_event
from serve.openai.completion_request import CompletionRequest
from serve.openai.error_object import error_object
from serve.openai.writing import Writing

logger = logging.getLogger(__name__)

_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream:
    """Sends the events of one stream; `count` is told every error that ends one."""

    def __init__(
        self,
        request: CompletionRequest,
        decoder: ServedDecoder,
        opened: DecoderStream,
        count: Callable[[RefusedError], None],
    ) -> None:
        self._request = request
        self._decoder = decoder
        self._stream = opened.stream
        self._writing = Writing(decoder, opened, request)
        self._form = AnswerForm(request, decoder.spec.fingerprint)
        self._count = count

    async def send(self, send: Send, request_id: str) -> None:
        """Send all of it. Raises RefusedError, before anything was sent, where no output comes."""
        first = await anext(self._stream, None)
        if first is None:
            raise self._decoder.refusal(self._stream)
        head = [*_HEAD, (b"x-request-id", request_id.encode())]
        await _send(send, {"type": "http.response.start", "status": 200, "headers": head})
        try:
            last = await self._send_pieces(send, first)
        except Exception:  # it has begun, so what a bug of ours costs is said inside of it
            logger.exception("a stream failed as it was sent")
            last = self._error(RefusedError("internal", "an internal error; the log has it"))
        await _send_body(send, last, more=False)

    async def _send_pieces(self, send: Send, output: StreamOutput | None) -> bytes:
        """Send text as it comes; return the last events."""
        events = self._form.role()
        while True:
            waiting = self._stream.waiting()
            piece = self._writing.take(waiting if output is None else [output, *waiting])
            if not piece.is_empty:
                events += self._form.piece(piece, self._usage_in_each())
            if self._stream.outcome is not None:
                return events + self._end()
            if events:
                await _send_body(send, events)
            events = b""
            output = await anext(self._stream, None)

    def _end(self) -> bytes:
        """Return the events behind the text: how it ended, what it took."""
        outcome = self._stream.outcome
        assert outcome is not None, "asked for once it is over"
        if not outcome.is_complete:
            return self._error(self._decoder.refusal(self._stream))
        writing, form = self._writing, self._form
        last = writing.finish()
        events = b"" if last.is_empty else form.piece(last, self._usage_in_each())
        events += form.end(writing.finish_reason, self._usage_in_each())
        if self._request.includes_usage:
            events += form.usage(writing.usage())
        return events + DONE

    def _error(self, error: RefusedError) -> bytes:
        self._count(error)
        return error_event(error_object(error)) + DONE

    def _usage_in_each(self) -> dict[str, Any] | None:
        return self._writing.usage() if self._request.usage_in_each else None


async def _send_body(send: Send, body: bytes, *, more: bool = True) -> None:
    await _send(send, {"type": "http.response.body", "body": body, "more_body": more})


async def _send(send: Send, message: Any) -> None:
    """Send a part of an answer; who is not there any more is told elsewhere (`watch_client`)."""
    try:
        await send(message)
    except RuntimeError as error:
        check_closed(error)
