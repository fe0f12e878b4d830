"""`IterationFill`: an iteration under construction, and the largest chunk that it has room for.

A chunk shrinks as its context grows: attention takes more of the time that is left (adaptive
chunking of Medha, arXiv 2409.17264 section 3.1), and the iteration still ends within its target.
"""

from __future__ import annotations

from slackfit.streams.iteration_cost import NO_WORK, IterationCost, IterationWork


class IterationFill:
    """The predicted time of an iteration at one width, while chunks are added to it."""

    __slots__ = ("_attention_s", "_cost", "_is_spread", "_rows", "_tokens")

    def __init__(self, cost: IterationCost, work: IterationWork = NO_WORK) -> None:
        """Begin with `work`, the iteration's decodes say."""
        self._cost = cost
        self._tokens = work.tokens
        self._rows = work.rows
        self._is_spread = work.spread > 0
        self._attention_s = (
            work.decodes * cost.decode_s
            + work.decode_positions * cost.position_s
            + work.chunks * cost.chunk_s
            + work.chunk_pairs * cost.pair_s
        )

    @property
    def num_tokens(self) -> int:
        """How many tokens it has so far."""
        return self._tokens

    @property
    def seconds(self) -> float:
        """The predicted time of what it has so far."""
        return self._cost.seconds_of(self._attention_s, self._tokens, self._rows, self._is_spread)

    def seconds_with(self, start: int, length: int, samples: bool) -> float:
        """Return the predicted time with one chunk more."""
        cost = self._cost
        return cost.seconds_of(
            self._attention_s + cost.attention_s(start, length),
            self._tokens + length,
            self._rows + samples,
            self._is_spread or cost.is_spread(start + length),
        )

    def add(self, start: int, length: int, samples: bool) -> None:
        """Add a chunk."""
        self._attention_s += self._cost.attention_s(start, length)
        self._tokens += length
        self._rows += samples
        self._is_spread = self._is_spread or self._cost.is_spread(start + length)

    def largest_chunk(
        self, start: int, remaining: int, limit: int, target_s: float, granule: int = 1
    ) -> int:
        """Return how many of `remaining` prompt tokens after `start` fit into `target_s`.

        At most `limit`; a multiple of `granule` where it is not all the limit allows. The last
        chunk of a prompt samples. 0: not even a granule fits.
        """
        most = min(remaining, limit)
        if most <= 0:
            return 0
        if self.seconds_with(start, most, most == remaining) <= target_s:
            return most
        low, high = 0, (most - 1) // granule  # in granules: `low` fits, `high` is the most
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds_with(start, middle * granule, False) <= target_s:
                low = middle
            else:
                high = middle - 1
        return low * granule


def prompt_alone_s(cost: IterationCost, start: int, end: int, chunk: int) -> float:
    """Return the time to compute prompt tokens `start` to `end` alone, in chunks of `chunk`.

    The prefill-time function of Medha (section 4.2) without its table: the sum over equal chunks is
    linear layers, head and overheads times their number, and pairs that add up to all of them.
    """
    length = end - start
    if length <= 0:
        return 0.0
    whole, rest = divmod(length, chunk)
    is_spread = cost.is_spread(end)
    pairs_s = cost.pairs(start, length) * cost.pair_s / length  # of a token, on average
    total_s = cost.head(1)
    for count, size in ((whole, chunk), (1, rest)):
        if count and size:
            attention_s = cost.chunk_s + pairs_s * size
            total_s += count * cost.seconds_of(attention_s, size, 0, is_spread)
    return total_s
