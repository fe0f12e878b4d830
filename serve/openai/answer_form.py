"""`AnswerForm`: the JSON of one request's answer, whole or as the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from serve.openai.completion_request import CompletionRequest
from serve.openai.token_scores import chat_logprobs, completion_logprobs, num_characters
from serve.openai.writing import Piece

DONE = b"data: [DONE]\n\n"


class WholeChoice(NamedTuple):
    """One text of an answer that is not streamed, and why it ends."""

    piece: Piece
    finish_reason: str


class AnswerForm:
    """Writes events and answers; what all of one request's have in common is written once.

    A request with several prompts has a choice for each: `index` says whose an event is.
    """

    def __init__(self, request: CompletionRequest, fingerprint: str) -> None:
        self._is_chat = request.is_chat
        self._has_scores = request.logprobs is not None
        self._includes_usage = request.includes_usage or request.usage_in_each
        self._offsets = [0] * len(request.prompts)  # characters of the tokens told so far
        kind = "chat.completion" if request.is_chat else "text_completion"
        self._common: dict[str, Any] = {
            "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": f"fp_{fingerprint[:12]}" if fingerprint else None,
        }
        chunk_kind = "chat.completion.chunk" if request.is_chat else kind
        head = json.dumps({**self._common, "object": chunk_kind})
        self._head = f"data: {head[:-1]}, ".encode()

    def role(self) -> bytes:
        """Return the first event of a chat, which says who speaks; of a completion nothing."""
        if not self._is_chat:
            return b""
        return self._event(0, b'{"role": "assistant", "content": ""}', b"null", None, None)

    def piece(self, index: int, piece: Piece, usage: dict[str, Any] | None = None) -> bytes:
        """Return the event of some text."""
        text = json.dumps(piece.text).encode()
        content = b'{"content": %b}' % text if self._is_chat else text
        return self._event(index, content, self._scores(index, piece), None, usage)

    def end(self, index: int, finish_reason: str, usage: dict[str, Any] | None = None) -> bytes:
        """Return the event that says why a text ends."""
        content = b"{}" if self._is_chat else b'""'
        return self._event(index, content, b"null", finish_reason, usage)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """Return the event behind the text that has no choices."""
        return self._head + b'"choices": [], "usage": %b}\n\n' % json.dumps(usage).encode()

    def whole(self, choices: Sequence[WholeChoice], usage: dict[str, Any]) -> bytes:
        """Return the whole answer."""
        written = [self._choice(index, *choice) for index, choice in enumerate(choices)]
        return json.dumps({**self._common, "choices": written, "usage": usage}).encode()

    def _choice(self, index: int, piece: Piece, finish_reason: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            choice["logprobs"] = chat_logprobs(piece.scores) if self._has_scores else None
        else:
            choice["text"] = piece.text
            scores = completion_logprobs(piece.scores, 0) if self._has_scores else None
            choice["logprobs"] = scores
        choice["finish_reason"] = finish_reason
        return choice

    def _scores(self, index: int, piece: Piece) -> bytes:
        if not self._has_scores:
            return b"null"
        offset = self._offsets[index]
        self._offsets[index] += num_characters(piece.scores)
        of = chat_logprobs(piece.scores) if self._is_chat else None
        return json.dumps(of or completion_logprobs(piece.scores, offset)).encode()

    def _event(
        self,
        index: int,
        content: bytes,
        scores: bytes,
        finish_reason: str | None,
        usage: dict[str, Any] | None,
    ) -> bytes:
        name = b"delta" if self._is_chat else b"text"
        finish = b"null" if finish_reason is None else b'"%b"' % finish_reason.encode()
        tail = b""
        if self._includes_usage:
            tail = b', "usage": %b' % (b"null" if usage is None else json.dumps(usage).encode())
        return (
            self._head
            + b'"choices": [{"index": %d, "%b": %b, "logprobs": %b, "finish_reason": %b}]%b}\n\n'
            % (index, name, content, scores, finish, tail)
        )


def error_event(error: dict[str, Any]) -> bytes:
    """Return the event of a stream that can't go on."""
    return b"data: %b\n\n" % json.dumps(error).encode()
