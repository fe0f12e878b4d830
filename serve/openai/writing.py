"""`Writing`: one stream's outputs on their way to text: pieces, how it ended, what it took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from serve.engine.open_stream import StreamOutput
from serve.models.served_decoder import DecoderStream, ServedDecoder
from serve.models.text_assembly import TextAssembly
from serve.openai.completion_request import CompletionRequest
from serve.openai.token_scores import chat_entry
from slackfit.streams.stream_query import FLUENT, StreamOutcome


class Piece(NamedTuple):
    """Text that is certain, and the entries of its tokens where log-probabilities are wanted."""

    text: str
    scores: list[dict[str, Any]]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.text and not self.scores


class Writing:
    """Turns outputs, as they come, into pieces."""

    def __init__(
        self, decoder: ServedDecoder, opened: DecoderStream, request: CompletionRequest
    ) -> None:
        self.stream = opened.stream
        self.num_tokens = 0
        self._opened = opened
        self._coder = decoder.coder
        self._quality_kind = decoder.spec.quality_kind
        wishes = request.wishes
        self._assembly = TextAssembly(decoder.coder, wishes.stop, wishes.sampling.min_tokens)
        self._wants_scores = request.logprobs is not None
        self._is_ended = False  # by an end token
        self._widths: list[list[Any]] = []  # runs of [width, outputs]
        self._quality = 0.0

    def take(self, outputs: Iterable[StreamOutput]) -> Piece:
        """Take outputs in; return the text that they complete."""
        texts: list[str] = []
        scores: list[dict[str, Any]] = []
        for token, _, subnet_id, quality in outputs:
            if self._widths and self._widths[-1][0] == subnet_id:
                self._widths[-1][1] += 1
            else:
                self._widths.append([subnet_id, 1])
            self._quality += quality
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

    def usage(self) -> dict[str, Any]:
        """Return the usage object: OpenAI's counts, and what served the stream.

        `widths` are runs of outputs that one width computed, in order. Once the stream is over,
        also how it was judged: fluidity, and that weighted by quality.
        """
        query = self.stream.query
        served: dict[str, Any] = {
            "widths": self._widths,
            "quality": self._quality / self.num_tokens if self.num_tokens else 0.0,
            "quality_kind": self._quality_kind,
        }
        outcome = self.stream.outcome
        if outcome is not None:
            served |= judged(outcome)
        return {
            "prompt_tokens": query.prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": query.prompt_tokens + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": query.cached_tokens},
            "supernet": served,
        }


def judged(outcome: StreamOutcome) -> dict[str, Any]:
    """Return how an ended stream was judged, by the engine's stamps."""
    query, times_s = outcome.query, outcome.output_s
    return {
        "status": outcome.status,
        "fluidity": outcome.fluidity,
        "weighted_fluidity": outcome.weighted_fluidity,
        "is_fluent": outcome.fluidity >= FLUENT,
        "missed_periods": outcome.missed,
        "periods": outcome.due,
        "ttft_ms": round((times_s[0] - query.arrival_s) * 1e3, 3) if times_s else None,
        "queue_ms": None
        if outcome.start_s is None
        else round((outcome.start_s - query.arrival_s) * 1e3, 3),
        "preemptions": outcome.preemptions,
    }
