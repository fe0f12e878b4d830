"""`ShardTable`: which shard holds which tokens of each stream, and in which slots. Integers only.

One table of extents per shard. Workers hold tensors and know no stream: what they write and read
is planned here, in the process that owns the table, so there is nothing that could differ between
workers, and an iteration that failed is planned again from what was committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from slackfit.streams.spread_rule import next_shard
from subnetact.decoding.extents import CacheFullError, ExtentTable, Run, SequenceId

EXTENT_TOKENS = 256


class ShardSpan(NamedTuple):
    """`length` consecutive tokens of a stream, which one shard holds."""

    shard: int
    length: int


class Fresh(NamedTuple):
    """Slots of the rows of a chunk from `first_row` on, which this iteration writes."""

    first_row: int
    run: Run


class ShardReads(NamedTuple):
    """What a chunk reads on one shard: all of `past`, and causally what is written of itself."""

    past: tuple[Run, ...] = ()
    fresh: tuple[Fresh, ...] = ()


class ShardTable:
    """Streams over the extents of `shards` shards, each with room for `capacity_tokens`."""

    def __init__(
        self,
        shards: int,
        capacity_tokens: int,
        *,
        block_tokens: int = 64,
        extent_tokens: int = EXTENT_TOKENS,
        spread_from: int = 0,
    ) -> None:
        """Hold nothing.

        A stream of less than `spread_from` tokens stays on one shard; a longer one takes extents of
        `extent_tokens` in turn. Raises ValueError for extents that are not whole blocks, or less
        room than one block.
        """
        if extent_tokens < 1 or extent_tokens % block_tokens:
            raise ValueError(
                f"extents of {extent_tokens} tokens, allowed multiples of a block's {block_tokens}"
            )
        blocks = capacity_tokens // block_tokens
        self._tables = [ExtentTable(blocks, block_tokens) for _ in range(shards)]
        self._spans: dict[SequenceId, list[ShardSpan]] = {}
        self._usable = set(range(shards))
        self.block_tokens, self.extent_tokens = block_tokens, extent_tokens
        self.spread_from = spread_from

    @property
    def num_shards(self) -> int:
        """How many shards there are, usable or not."""
        return len(self._tables)

    @property
    def capacity_tokens(self) -> int:
        """How many tokens fit in all, on the shards that are usable."""
        return sum(self._tables[shard].capacity_tokens for shard in self._usable)

    @property
    def free_tokens(self) -> int:
        """How many tokens the free blocks of usable shards have room for."""
        return sum(self._tables[shard].free_tokens for shard in self._usable)

    @property
    def sequences(self) -> tuple[SequenceId, ...]:
        """The streams that hold anything."""
        return tuple(self._spans)

    def spans(self, sequence: SequenceId) -> tuple[ShardSpan, ...]:
        """Return who holds a stream's tokens, in order; none for one that is not known."""
        return tuple(self._spans.get(sequence, ()))

    def length(self, sequence: SequenceId) -> int:
        """How many tokens of a stream are cached; 0 for one that is not known."""
        return sum(span.length for span in self._spans.get(sequence, ()))

    def held(self, sequence: SequenceId) -> list[int]:
        """Return how many tokens of a stream each shard has."""
        return [table.length(sequence) for table in self._tables]

    def missing_tokens(self, sequence: SequenceId, tokens: int) -> int:
        """How many free tokens (whole blocks) it takes to append `tokens`.

        Beside the room that the stream has: the rest of a block, and what an iteration that failed
        had made for it.
        """
        made = sum(self._tables[shard].room(sequence) for shard in self._usable)
        return -(-max(0, tokens - made) // self.block_tokens) * self.block_tokens

    def place(
        self, sequence: SequenceId, tokens: int, before: Sequence[ShardSpan] = ()
    ) -> list[ShardSpan]:
        """Make room for a stream's next tokens and say where; nothing counts before `commit`.

        `before` was placed and is not committed yet. Raises CacheFullError; room that was made
        stays with the stream until its release, and is taken first.
        """
        held = self.held(sequence)
        for shard, count in before:
            held[shard] += count
        length = sum(held)
        spans = (*self._spans.get(sequence, ()), *before)
        last = spans[-1].shard if spans else None
        placed: list[ShardSpan] = []
        while tokens:
            shard = self._taker(sequence, held, length, last)
            left = self.extent_tokens - length % self.extent_tokens
            made = self._made(shard, sequence, held[shard])
            take = min(tokens, left, made or self._tables[shard].free_tokens)
            self._tables[shard].reserve(
                sequence, held[shard] + take - self._tables[shard].length(sequence)
            )
            held[shard] += take
            if placed and placed[-1].shard == shard:
                placed[-1] = ShardSpan(shard, placed[-1].length + take)
            else:
                placed.append(ShardSpan(shard, take))
            length, tokens, last = length + take, tokens - take, shard
        return placed

    def reads(
        self, sequence: SequenceId, before: Sequence[ShardSpan], chunk: Sequence[ShardSpan]
    ) -> list[ShardReads]:
        """Return per shard what a placed chunk reads and writes.

        `before` was placed behind what is committed in the same iteration, and comes before it.
        """
        found: list[ShardReads] = []
        for shard, table in enumerate(self._tables):
            at = table.length(sequence) + sum(span.length for span in before if span.shard == shard)
            past = table.slots(sequence, 0, at) if at else []
            fresh: list[Fresh] = []
            row = 0
            for owner, length in chunk:
                if owner == shard:
                    first = row
                    for run in table.slots(sequence, at, at + length):
                        fresh.append(Fresh(first, run))
                        first += run.length
                    at += length
                row += length
            found.append(ShardReads(tuple(past), tuple(fresh)))
        return found

    def commit(self, sequence: SequenceId, placed: Iterable[ShardSpan]) -> None:
        """Count placed tokens as written."""
        spans = self._spans.setdefault(sequence, [])
        for shard, length in placed:
            self._tables[shard].advance(sequence, length)
            if spans and spans[-1].shard == shard:
                spans[-1] = ShardSpan(shard, spans[-1].length + length)
            else:
                spans.append(ShardSpan(shard, length))

    def share(self, source: SequenceId, sequence: SequenceId, tokens: int) -> None:
        """Begin a stream with the first `tokens` of another one, without a copy.

        Raises ValueError unless these are whole blocks that the source has, and the stream is new.
        """
        if tokens % self.block_tokens or not 0 < tokens <= self.length(source):
            raise ValueError(
                f"{tokens} tokens of {source!r} can't be shared; allowed multiples of "
                f"{self.block_tokens} up to its length {self.length(source)}"
            )
        if sequence in self._spans:
            raise ValueError(f"sequence {sequence!r} is there already")
        spans: list[ShardSpan] = []
        for shard, length in self._spans[source]:
            if tokens > 0:
                spans.append(ShardSpan(shard, min(length, tokens)))
                tokens -= length
        for shard, table in enumerate(self._tables):
            count = sum(span.length for span in spans if span.shard == shard)
            if count:
                table.share(source, sequence, count)
        self._spans[sequence] = spans

    def release(self, sequence: SequenceId) -> None:
        """Forget a stream, and room that was made for it. Unknown: nothing."""
        self._spans.pop(sequence, None)
        for table in self._tables:
            table.release(sequence)

    def lose(self, shard: int) -> list[SequenceId]:
        """Forget every stream that a shard has tokens of, and place none on it; return them."""
        self._usable.discard(shard)
        lost = [name for name, spans in self._spans.items() if any(s.shard == shard for s in spans)]
        for name in lost:
            self.release(name)
        for name in self._tables[shard].sequences:  # room that was made for what never came
            self._tables[shard].release(name)
        return lost

    def regain(self, shard: int) -> None:
        """Place streams on a shard again, which holds nothing."""
        self._usable.add(shard)

    def check_integrity(self) -> None:
        """Raise AssertionError unless tables and spans agree, and each table is sound."""
        for table in self._tables:
            table.check_integrity()
        for name, spans in self._spans.items():
            for shard, table in enumerate(self._tables):
                counted = sum(span.length for span in spans if span.shard == shard)
                assert counted == table.length(name), f"{name!r} on shard {shard}: {counted}"

    def _taker(
        self, sequence: SequenceId, held: Sequence[int], length: int, last: int | None
    ) -> int:
        """The shard of the next token: an extent that is not full goes on where it is.

        But room that was made for the stream, which is nobody else's, comes before what is free.
        """
        room = [0] * len(self._tables)
        for shard in self._usable:
            room[shard] = self._made(shard, sequence, held[shard])
        if not any(room):
            for shard in self._usable:
                room[shard] = self._tables[shard].free_tokens
        if last is not None and length % self.extent_tokens and room[last]:
            return last
        shard = next_shard(held, room, last, self.spread_from)
        if shard is None:
            raise CacheFullError(
                f"sequence {sequence!r} finds no room: 0 of {self.capacity_tokens} tokens are free"
            )
        return shard

    def _made(self, shard: int, sequence: SequenceId, held: int) -> int:
        """For how many more tokens of a stream a shard has made room, of which it has `held`."""
        table = self._tables[shard]
        return table.room(sequence) - (held - table.length(sequence))
