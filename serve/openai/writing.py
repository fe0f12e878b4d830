"""`Writing`: one stream's outputs on their way to text: pieces, how it ended, what served it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from serve.engine.streams.open_stream import StreamOutput
from serve.models.served_decoder import DecoderStream, ServedDecoder
from serve.models.text_assembly import TextAssembly
from serve.openai.completion_request import CompletionRequest
from serve.openai.token_scores import chat_entry


class Piece(NamedTuple):
    """Text that is certain, and the entries of its tokens where log-probabilities are wanted."""

    text: str
    scores: list[dict[str, Any]]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.text and not self.scores


class Writing:
    """Turns outputs, as they come, into pieces.

    `widths` are runs of [width, outputs] that one width computed, in order; `quality` is the sum
    of its `num_tokens` outputs' qualities.
    """

    def __init__(
        self, decoder: ServedDecoder, opened: DecoderStream, request: CompletionRequest
    ) -> None:
        self.stream = opened.stream
        self.num_tokens = 0
        self.widths: list[list[Any]] = []
        self.quality = 0.0
        self.quality_kind = decoder.spec.quality_kind
        self._opened = opened
        self._coder = decoder.coder
        wishes, prompt = request.wishes, opened.stream.request.prompt
        self._assembly = TextAssembly(
            decoder.coder, wishes.stop, wishes.sampling.min_tokens, prompt
        )
        self._wants_scores = request.logprobs is not None
        self._is_ended = False  # by an end token

    def take(self, outputs: Iterable[StreamOutput]) -> Piece:
        """Take outputs in; return the text that they complete."""
        texts: list[str] = []
        scores: list[dict[str, Any]] = []
        for token, _, subnet_id, quality in outputs:
            if self.widths and self.widths[-1][0] == subnet_id:
                self.widths[-1][1] += 1
            else:
                self.widths.append([subnet_id, 1])
            self.quality += quality
            self.num_tokens += 1
            if token in self._opened.end_tokens:
                self._is_ended = True
                continue
            texts.append(self._assembly.push(token))
            if self._wants_scores:
                score = self._opened.choose.scores[self.num_tokens - 1]
                scores.append(chat_entry(self._coder, token, score))
        return Piece("".join(texts), scores)

    def finish(self) -> Piece:
        """Return what was held back, when the stream is over."""
        return Piece(self._assembly.finish(), [])

    @property
    def finish_reason(self) -> str:
        """Why a whole text ends: `stop` (an end token, a stop string) or `length`."""
        return "stop" if self._is_ended or self._assembly.is_over else "length"
