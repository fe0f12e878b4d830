"""`StreamDevice`: the tokens of the open streams, between a scheduler of counts and a decoder.

The scheduler speaks of positions, the executor of token ids: this holds each stream's ids, cuts the
chunks of a step out of them, and chooses the next token of what was sampled. What the executor is
does not matter here: `subnetact.decoding` has the real one, `TimedDecoder` sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from slackfit.streams.stream_query import StreamChunk

Choose = Callable[[Any, int], int]
"""Chooses a token by its row of logits (vocabulary,) and its position in the sequence."""


class IterationExecutor(Protocol):
    """What runs one iteration of a decoder."""

    @property
    def subnet_ids(self) -> tuple[str, ...]: ...

    def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
        """Run chunks (`TokenRun`); return logits (S, vocabulary) of those that sample, in order.

        Where it raises, nothing of the iteration was kept.
        """
        ...

    def share(self, source: Any, sequence: Any, tokens: int) -> None:
        """Begin a sequence with the first `tokens` of one that is kept, without computing them."""
        ...

    def release(self, sequence: Any) -> None:
        """Forget a sequence's keys and values."""
        ...


class SharedPrefix(NamedTuple):
    """The first `tokens` of a prompt are those of `source`, a sequence that the executor keeps."""

    source: int | str
    tokens: int


class TokenRun(NamedTuple):
    """The next tokens of one sequence, behind what is cached of it."""

    sequence: int
    ids: tuple[int, ...]
    samples: bool


class _OpenText:
    __slots__ = ("choose", "ids")

    def __init__(self, prompt: Sequence[int], choose: Choose) -> None:
        self.ids = list(prompt)
        self.choose = choose


class StreamDevice:
    """One executor and the ids of the streams on it; used by one thread only."""

    def __init__(self, executor: IterationExecutor) -> None:
        """Begin without streams."""
        self.executor = executor
        self._texts: dict[int, _OpenText] = {}

    def __len__(self) -> int:
        """Return how many streams are open."""
        return len(self._texts)

    def begin(
        self, query_id: int, prompt: Sequence[int], choose: Choose, shared: SharedPrefix | None
    ) -> None:
        """Take a stream's prompt, before its first chunk, and what is computed of it already."""
        self._texts[query_id] = _OpenText(prompt, choose)
        if shared is not None:
            self.executor.share(shared.source, query_id, shared.tokens)

    def run(self, subnet_id: str, chunks: Sequence[StreamChunk]) -> dict[int, int]:
        """Run one iteration; return the next token of every stream that sampled, by its id.

        Raises what the executor raises, and then no stream has got on.
        """
        runs = [
            TokenRun(query_id, tuple(self._texts[query_id].ids[at : at + length]), samples)
            for query_id, at, length, samples in chunks
        ]
        logits = self.executor.run(subnet_id, runs)
        sampled = [run.sequence for run in runs if run.samples]
        if len(logits) != len(sampled):
            raise RuntimeError(f"{len(logits)} rows of logits for {len(sampled)} that sample")
        return {
            query_id: self._next(self._texts[query_id], row)
            for query_id, row in zip(sampled, logits, strict=True)
        }

    def restart(self, query_id: int) -> None:
        """Give up a stream's keys and values; its tokens stay, to be computed again."""
        self.executor.release(query_id)

    def release(self, query_id: int) -> None:
        """Forget a stream; one that is not there is no error."""
        if self._texts.pop(query_id, None) is not None:
            self.executor.release(query_id)

    @staticmethod
    def _next(text: _OpenText, row: Any) -> int:
        token = text.choose(row, len(text.ids))
        text.ids.append(token)
        return token


def greedy(row: Any, position: int) -> int:
    """Choose the most likely token."""
    return int(row.argmax())
