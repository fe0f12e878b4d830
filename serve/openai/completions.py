"""`Completions`: what a request for a text meets, from its first byte to its last event.

Until the first output has come nothing is sent, so whatever goes wrong before has a status of its
own; behind it an error is an event of the stream. Who goes away takes the streams with it: their
memory is free for the next iteration. A reader that is slow holds nobody up: outputs wait in the
stream and are sent together once it takes some. One that takes nothing is let go: after a time
(`hosts/connections/slow_reader.py`), or once what waits for it is too much
(`engine/streams/open_stream.py`).

A request with several prompts is a stream for each. One that is refused costs the others as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.types import Send

from serve.doors.body_budget import InflightBody
from serve.doors.headers import check_not_encoded
from serve.doors.http_answer import CLOSING, HttpAnswer
from serve.doors.http_call import WHEN_GONE, WHY_GONE, HttpCall
from serve.doors.parse_turn import ParseTurn
from serve.doors.request_body import check_size, read_body
from serve.doors.rest_infer import watch_client
from serve.doors.server import Server
from serve.engine.streams.open_stream import StreamOutput
from serve.engine.streams.stream_group import StreamGroup
from serve.models.limits import RefusedError
from serve.models.served_decoder import DecoderStream, ServedDecoder
from serve.models.stream_terms import check_time_left
from serve.openai.answer_form import AnswerForm, WholeChoice
from serve.openai.completion_request import CompletionRequest, Message, Prompt, parse_completion
from serve.openai.error_object import FieldError, error_answer
from serve.openai.event_stream import SEND_TIMEOUT_S, EventStream
from serve.openai.usage import usage_of
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
        self._parse_turn = ParseTurn()
        self._most_values = _LEAST_VALUES + 2 * max(d.longest_tokens for d in self._decoders)

    async def answer(self, call: HttpCall, send: Send, *, is_chat: bool) -> None:
        """Answer one request; its bytes are in flight until it is answered."""
        try:
            call.caller = call.identify(self._server.guard, "infer")
            self._server.guard.admit(call.caller)
            async with self._server.budget.body() as inflight:
                answer = await self._answered(call, send, inflight, is_chat=is_chat)
        except RefusedError as error:
            answer = self.refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("POST %s failed", call.scope["path"])
            text = "an internal error; the server's log has it"
            answer = self.refuse(call, RefusedError("internal", text))
        if answer is not None:
            await answer.send(call.scope, send, call.request_id)

    async def _answered(
        self, call: HttpCall, send: Send, inflight: InflightBody, *, is_chat: bool
    ) -> HttpAnswer | None:
        """Return the answer to a request, None where it was streamed. Raises RefusedError."""
        request, decoder = await self._parsed(call, inflight, is_chat=is_chat)
        opened: list[DecoderStream] = []
        with _closed(opened):
            await self._open(call, request, decoder, opened)
            with _watched(call, opened):
                if not request.streams:
                    return await self._whole(request, decoder, opened)
                count = functools.partial(self._count, call)
                # A listener of ours lets go of who reads nothing; any other waits for ever.
                timeout_s = None if WHEN_GONE in call.scope else SEND_TIMEOUT_S
                events = EventStream(request, decoder, opened, count, timeout_s=timeout_s)
                await events.send(send, call.request_id)
                return None

    def refuse(self, call: HttpCall, error: RefusedError) -> HttpAnswer:
        """Count a refusal and return the answer that it is."""
        self._count(call, error)
        return error_answer(error, is_closing=error.reason in CLOSING or not call.is_kept())

    def _count(self, call: HttpCall, error: RefusedError) -> None:
        self._server.refused(DOOR, error.reason, call.caller.tenant.name)

    # --- reading ---------------------------------------------------------------------------------

    async def _parsed(
        self, call: HttpCall, inflight: InflightBody, *, is_chat: bool
    ) -> tuple[CompletionRequest, ServedDecoder]:
        """Read a request. Raises RefusedError."""
        check_time_left(call.headers, call.arrival_s, self._server.models.clock())
        values = await self.read_json(call, inflight)
        decoder = self.decoder_of(values)
        vocab_size = decoder.spec.vocab_size
        return parse_completion(values, is_chat=is_chat, vocab_size=vocab_size), decoder

    async def _open(
        self,
        call: HttpCall,
        request: CompletionRequest,
        decoder: ServedDecoder,
        opened: list[DecoderStream],
    ) -> None:
        """Begin the streams of a request, one for each prompt. Raises RefusedError."""
        self._server.guard.charge(call.caller, len(request.prompts))
        encoded: list[list[int]] = []
        for prompt in request.prompts:
            if encoded:  # many texts hold the loop up as long as one that is too long for it
                await asyncio.sleep(0)
            encoded.append(await encode_prompt(decoder, prompt, request.messages))
        headers = call.headers if request.streams else _with_read_timeout(call.headers)
        for prompt in encoded:
            stream = decoder.open(
                prompt,
                request.wishes,
                headers,
                arrival_s=call.arrival_s,
                tenant=call.caller.tenant,
                request_id=call.request_id,
            )
            opened.append(stream)

    async def read_json(self, call: HttpCall, inflight: InflightBody) -> Any:
        """Return the JSON of a body, which is bounded before it is parsed. Raises RefusedError."""
        max_bytes = self._server.max_body_bytes
        check_not_encoded(call.headers.get("content-encoding"))
        check_size(call.headers.get("content-length", ""), max_bytes)
        body = await read_body(call.receive, max_bytes, inflight)
        call.is_read = True
        for what, given in (
            ("values", body.count(b",")),
            ("lists or objects", body.count(b"[") + body.count(b"{")),
        ):
            if given > self._most_values and len(body) > self._server.max_json_bytes:
                text = f"the JSON has {given} {what} or more, allowed {self._most_values}"
                raise RefusedError("too_large", text)
        async with self._parse_turn.of(len(body)):
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
        self, request: CompletionRequest, decoder: ServedDecoder, opened: Sequence[DecoderStream]
    ) -> HttpAnswer:
        """Return the answer once all of it has come. Raises RefusedError where one is not whole."""
        group = StreamGroup([each.stream for each in opened])
        outputs: list[list[StreamOutput]] = [[] for _ in opened]
        num_open = len(opened)
        while num_open:
            for index in await group.changed():
                stream = group.streams[index]
                outputs[index] += stream.waiting()
                if stream.outcome is not None:
                    if not stream.outcome.is_complete:
                        raise decoder.refusal(stream)
                    num_open -= 1
        writings = [Writing(decoder, each, request) for each in opened]
        choices: list[WholeChoice] = []
        for writing, own in zip(writings, outputs, strict=True):
            piece = writing.take(own)
            piece = piece._replace(text=piece.text + writing.finish().text)
            choices.append(WholeChoice(piece, writing.finish_reason))
        form = AnswerForm(request, decoder.spec.fingerprint)
        return HttpAnswer(200, form.whole(choices, usage_of(writings)))


@contextlib.contextmanager
def _closed(opened: Sequence[DecoderStream]) -> Iterator[None]:
    """Withdraw, at the end, the streams that are not over."""
    try:
        yield
    finally:
        for each in opened:
            each.stream.cancel()


@contextlib.contextmanager
def _watched(call: HttpCall, opened: Sequence[DecoderStream]) -> Iterator[None]:
    """Withdraw the streams of a request when its client goes."""

    def withdraw() -> None:
        why_gone = call.scope.get(WHY_GONE)
        reason = "cancelled" if why_gone is None else why_gone()
        for each in opened:
            each.stream.cancel(reason)

    stop_watching = watch_client(call, withdraw)
    try:
        yield
    finally:
        stop_watching()


async def encode_prompt(
    decoder: ServedDecoder, prompt: Prompt, messages: Sequence[Message] = ()
) -> list[int]:
    """Return the ids of a text, of a chat, or of ids. Raises RefusedError."""
    if not isinstance(prompt, str):
        return list(prompt)
    # Roles too: a template writes whatever they are.
    text = "".join(message["role"] + message["content"] for message in messages) or prompt
    decoder.check_text(text)

    def encode() -> list[int]:
        coder = decoder.coder
        return coder.encode_chat(messages) if messages else coder.encode(prompt)

    try:
        return await asyncio.to_thread(encode) if len(text) > _LONG_TEXT else encode()
    except (ValueError, TypeError) as error:  # of the template; or of what is no Unicode
        field = "messages" if messages else "prompt"
        raise FieldError(field, f"{field}: {error}") from None


def _with_read_timeout(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers with the time limit that OpenAI's client says it waits for a whole answer."""
    limit = headers.get(_READ_TIMEOUT, "")
    if not limit.replace(".", "", 1).isdigit():
        return headers
    before = headers.get(TIMEOUT_HEADER)
    return {**headers, TIMEOUT_HEADER: limit if before is None else f"{before},{limit}"}
