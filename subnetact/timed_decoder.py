"""`TimedDecoder`: occupies a device for the predicted time of each iteration, computing nothing.

A labelled fake like `TimedExecutor`, with the protocol of the decoder's executor: it sleeps for
what the cost model says and answers logits that are a function of the sequence alone, so that a
test can tell whose token it got and whether a pre-empted text came out the same. Whatever reports a
figure made with it must say so (`is_timed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.iteration_fill import IterationFill


class SequenceChunk(Protocol):
    """The next tokens of one sequence, as executors of decoders take them."""

    @property
    def sequence(self) -> int | str: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def samples(self) -> bool: ...


class TimedDecoder:
    """Sleeps for each iteration; the next token is a hash of all before it.

    `clock` and `sleep` are injected for virtual time; `capacity_tokens` bounds what all sequences
    hold, as the memory of a real one does.
    """

    is_timed = True
    eos_token = 0

    def __init__(
        self,
        costs: IterationCosts,
        *,
        vocab_size: int = 256,
        capacity_tokens: int = 65_536,
        block_tokens: int = 64,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.subnet_ids = costs.subnet_ids
        self.vocab_size = vocab_size
        self.num_iterations = 0
        self._costs = costs
        self._block_tokens = block_tokens
        self._num_blocks = capacity_tokens // block_tokens
        self._clock = clock
        self._sleep = sleep
        self._sequences: dict[int | str, list[int]] = {}

    @property
    def held_tokens(self) -> int:
        """For how many tokens blocks are held."""
        return self._block_tokens * sum(self._blocks(len(ids)) for ids in self._sequences.values())

    def run(self, subnet_id: str, chunks: Sequence[SequenceChunk]) -> np.ndarray:
        """Sleep, then return float32 logits (S, vocabulary) of the chunks that sample, in order.

        Raises ValueError for an id outside the vocabulary, ProfileError for an unknown subnet, and
        MemoryError where the sequences hold more than the capacity.
        """
        start_s = self._clock()
        wrong = [i for chunk in chunks for i in chunk.ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise ValueError(f"token {wrong[0]}, allowed 0 to {self.vocab_size - 1}")
        finish_s = start_s + self._predicted_s(subnet_id, chunks)
        held = {chunk.sequence: len(self._sequences.get(chunk.sequence, ())) for chunk in chunks}
        more = sum(
            self._blocks(held[chunk.sequence] + len(chunk.ids)) - self._blocks(held[chunk.sequence])
            for chunk in chunks
        )
        if self.held_tokens // self._block_tokens + more > self._num_blocks:
            raise MemoryError(
                f"{self.held_tokens} tokens and {more} blocks more, room for {self._num_blocks}"
            )
        for chunk in chunks:
            self._sequences.setdefault(chunk.sequence, []).extend(chunk.ids)
        tokens = [self.next_token(self._sequences[c.sequence]) for c in chunks if c.samples]
        logits = np.zeros((len(tokens), self.vocab_size), dtype=np.float32)
        logits[np.arange(len(tokens)), tokens] = 1.0
        self.num_iterations += 1
        self._sleep(max(0.0, finish_s - self._clock()))
        return logits

    def _predicted_s(self, subnet_id: str, chunks: Sequence[SequenceChunk]) -> float:
        fill = IterationFill(self._costs.rung(subnet_id))
        for chunk in chunks:
            fill.add(len(self._sequences.get(chunk.sequence, ())), len(chunk.ids), chunk.samples)
        return fill.seconds

    def next_token(self, ids: Sequence[int]) -> int:
        """Return the token that follows `ids`; never the end token."""
        total = sum((i + 1) * (token + 1) for i, token in enumerate(ids))
        return 1 + total * 2_654_435_761 % (self.vocab_size - 1)

    def share(self, source: int | str, sequence: int | str, tokens: int) -> None:
        """Begin a sequence with the first `tokens` of another one (a prefix hit)."""
        self._sequences[sequence] = self._sequences[source][:tokens]

    def release(self, sequence: int | str) -> None:
        """Forget a sequence; one that is not known is no error."""
        self._sequences.pop(sequence, None)

    def look_after(self) -> tuple[()]:
        """Return the sequences that were lost: none ever are."""
        return ()

    def wait_until_whole(self) -> bool:
        """Return whether there was anything to wait for: never."""
        return False

    def close(self) -> None:
        """End nothing: it is all in this process."""

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)
