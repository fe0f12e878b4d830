"""`Completions`: what a request for a text meets, from its first byte to its last event.

Until the first output has come nothing is sent, so whatever goes wrong before has a status of its
own; behind it an error is an event of the stream. Who goes away takes the stream with it: its
memory is free for the next iteration. A reader that is slow holds nobody up: outputs wait in the
stream, at most as many as were asked for, and are sent together once it takes some.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Send

from serve.doors.headers import check_not_encoded
from serve.doors.http_answer import HttpAnswer
from serve.doors.http_call import HttpCall
from serve.doors.request_body import check_size, read_body
from serve.doors.rest_infer import watch_client
from serve.doors.server import Server
from serve.models.limits import RefusedError
from serve.models.served_decoder import DecoderStream, ServedDecoder
from serve.openai.answer_form import AnswerForm
from serve.openai.completion_request import CompletionRequest, Message, parse_completion
from serve.openai.error_object import FieldError, error_answer
from serve.openai.event_stream import EventStream
from serve.openai.writing import Writing
from serve.proto.names import TIMEOUT_HEADER

logger = logging.getLogger(__name__)

DOOR = "openai"
_READ_TIMEOUT = "x-stainless-read-timeout"  # how long OpenAI's client waits for bytes
_LONG_TEXT = 20_000  # characters; longer ones are encoded beside the loop
_LEAST_VALUES = 10_000


class Completions:
    """Answers `/v1/completions` and `/v1/chat/completions` of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoders = server.models.decoders
        self._most_values = _LEAST_VALUES + 2 * max(d.longest_tokens for d in self._decoders)

    async def answer(self, call: HttpCall, send: Send, *, is_chat: bool) -> None:
        """Answer one request."""
        try:
            request, decoder, opened = await self._opened(call, is_chat=is_chat)
            stop_watching = watch_client(call, opened.stream.cancel)
            try:
                if request.streams:
                    count = functools.partial(self._count, call)
                    events = EventStream(request, decoder, opened, count)
                    await events.send(send, call.request_id)
                    return
                answer = await self._whole(request, decoder, opened)
            finally:
                stop_watching()
                opened.stream.cancel()  # what is over already is left as it is
        except RefusedError as error:
            answer = self.refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("POST %s failed", call.scope["path"])
            text = "an internal error; the server's log has it"
            answer = self.refuse(call, RefusedError("internal", text))
        await answer.send(call.scope, send, call.request_id)

    def refuse(self, call: HttpCall, error: RefusedError) -> HttpAnswer:
        """Count a refusal and return the answer that it is."""
        self._count(call, error)
        is_closing = error.reason in ("too_large", "too_slow", "draining") or not call.is_kept()
        return error_answer(error, is_closing=is_closing)

    def _count(self, call: HttpCall, error: RefusedError) -> None:
        self._server.metrics.refused(DOOR, error.reason, call.caller.tenant.name)

    # --- reading ---------------------------------------------------------------------------------

    async def _opened(
        self, call: HttpCall, *, is_chat: bool
    ) -> tuple[CompletionRequest, ServedDecoder, DecoderStream]:
        """Read a request and begin its stream. Raises RefusedError."""
        guard = self._server.guard
        call.caller = call.identify(guard, "infer")
        guard.admit(call.caller)
        values = await self.read_json(call)
        decoder = self.decoder_of(values)
        vocab_size = decoder.spec.vocab_size
        request = parse_completion(values, is_chat=is_chat, vocab_size=vocab_size)
        prompt = await encode_prompt(decoder, request.prompt, request.messages)
        headers = call.headers if request.streams else _with_read_timeout(call.headers)
        opened = decoder.open(
            prompt,
            request.wishes,
            headers,
            arrival_s=call.arrival_s,
            tenant=call.caller.tenant,
        )
        return request, decoder, opened

    async def read_json(self, call: HttpCall) -> Any:
        """Return the JSON of a body, which is bounded before it is parsed. Raises RefusedError."""
        max_bytes = self._server.max_body_bytes
        check_not_encoded(call.headers.get("content-encoding"))
        check_size(call.headers.get("content-length", ""), max_bytes)
        async with self._server.budget.body() as inflight:
            body = await read_body(call.receive, max_bytes, inflight)
            call.is_read = True
            for what, given in (
                ("values", body.count(b",")),
                ("lists or objects", body.count(b"[") + body.count(b"{")),
            ):
                if given > self._most_values and len(body) > self._server.max_json_bytes:
                    text = f"the JSON has {given} {what} or more, allowed {self._most_values}"
                    raise RefusedError("too_large", text)
            try:
                return json.loads(body)
            except (ValueError, RecursionError) as error:
                raise RefusedError("bad_request", f"the request is not JSON: {error}") from None

    def decoder_of(self, values: Any) -> ServedDecoder:
        """Return the decoder that a request names. Raises RefusedError."""
        name = values.get("model") if isinstance(values, dict) else None
        if not isinstance(name, str) or not name:
            raise FieldError("model", "model is missing: name one of GET /v1/models")
        return self._server.models.find_decoder(name)

    # --- answering -------------------------------------------------------------------------------

    async def _whole(
        self, request: CompletionRequest, decoder: ServedDecoder, opened: DecoderStream
    ) -> HttpAnswer:
        writing = Writing(decoder, opened, request)
        piece = writing.take([output async for output in opened.stream])
        _check_whole(decoder, opened)
        last = writing.finish()
        piece = piece._replace(text=piece.text + last.text)
        form = AnswerForm(request, decoder.spec.fingerprint)
        return HttpAnswer(200, form.whole(piece, writing.finish_reason, writing.usage()))


async def encode_prompt(
    decoder: ServedDecoder, prompt: str | tuple[int, ...], messages: Sequence[Message] = ()
) -> list[int]:
    """Return the ids of a text, of a chat, or of ids. Raises RefusedError."""
    if not isinstance(prompt, str):
        return list(prompt)
    text = "".join(message["content"] for message in messages) or prompt
    decoder.check_text(text)

    def encode() -> list[int]:
        coder = decoder.coder
        return coder.encode_chat(messages) if messages else coder.encode(prompt)

    try:
        return await asyncio.to_thread(encode) if len(text) > _LONG_TEXT else encode()
    except (ValueError, TypeError) as error:  # of the template; or of what is no Unicode
        field = "messages" if messages else "prompt"
        raise FieldError(field, f"{field}: {error}") from None


def _check_whole(decoder: ServedDecoder, opened: DecoderStream) -> None:
    outcome = opened.stream.outcome
    assert outcome is not None, "asked for once it is over"
    if not outcome.is_complete:
        raise decoder.refusal(opened.stream)


def _with_read_timeout(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers with the time limit that OpenAI's client says it waits for a whole answer."""
    limit = headers.get(_READ_TIMEOUT, "")
    if not limit.replace(".", "", 1).isdigit():
        return headers
    before = headers.get(TIMEOUT_HEADER)
    return {**headers, TIMEOUT_HEADER: limit if before is None else f"{before},{limit}"}
