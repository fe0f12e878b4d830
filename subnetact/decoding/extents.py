"""`ExtentTable`: which slots of a key-value cache belong to which sequence. Plain integers.

Slots are handed out in blocks. A sequence holds extents, runs of consecutive blocks, so that what
it attends to is a few contiguous slabs and mostly one: it grows in place while the next block is
free, and opens a further extent elsewhere when it is not; extents begin amid what is free, so that
those who write in turn do not take each other's next block. Blocks that are full may be shared by
sequences with the same beginning; they are counted, and nobody writes into them any more.

(vLLM, SOSP'23, pages its cache in blocks of 16 tokens and gathers them; on a CPU gathering costs
three to five times the attention over a slab.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

SequenceId = int | str


class CacheFullError(RuntimeError):
    """The cache has not as many free blocks as a sequence needs; nothing was changed."""


class Run(NamedTuple):
    """`length` consecutive slots from `begin` on."""

    begin: int
    length: int


@dataclass(slots=True)
class _Sequence:
    extents: list[Run] = field(default_factory=list)  # blocks
    length: int = 0  # tokens

    @property
    def num_blocks(self) -> int:
        return sum(extent.length for extent in self.extents)


class ExtentTable:
    """Blocks of slots, the sequences that hold them, and those that are free."""

    def __init__(self, num_blocks: int, block_tokens: int):
        """Raises ValueError for fewer than one block or token."""
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(
                f"a cache of {num_blocks} blocks of {block_tokens} tokens; allowed 1 or more each"
            )
        self.block_tokens = block_tokens
        self._references = [0] * num_blocks
        self._sequences: dict[SequenceId, _Sequence] = {}
        self._num_free = num_blocks

    @property
    def capacity_tokens(self) -> int:
        """How many tokens fit in all."""
        return len(self._references) * self.block_tokens

    @property
    def free_tokens(self) -> int:
        """How many tokens the free blocks have room for."""
        return self._num_free * self.block_tokens

    @property
    def sequences(self) -> tuple[SequenceId, ...]:
        """The sequences that hold anything, in the order in which they came."""
        return tuple(self._sequences)

    def length(self, sequence: SequenceId) -> int:
        """How many tokens of a sequence are cached; 0 for one that is not known."""
        held = self._sequences.get(sequence)
        return 0 if held is None else held.length

    def num_extents(self, sequence: SequenceId) -> int:
        """In how many slabs a sequence lies."""
        held = self._sequences.get(sequence)
        return 0 if held is None else len(held.extents)

    def room(self, sequence: SequenceId) -> int:
        """How many tokens more fit into the blocks that a sequence holds."""
        held = self._sequences.get(sequence)
        return 0 if held is None else held.num_blocks * self.block_tokens - held.length

    def missing_tokens(self, sequence: SequenceId, tokens: int) -> int:
        """How many free tokens (whole blocks) it takes to append `tokens` to a sequence."""
        held = self._sequences.get(sequence) or _Sequence()
        blocks = -(-(held.length + tokens) // self.block_tokens) - held.num_blocks
        return max(0, blocks) * self.block_tokens

    def reserve(self, sequence: SequenceId, tokens: int) -> list[Run]:
        """Make room for `tokens` more; a sequence that is not known begins here.

        Returns the slots of the blocks that this takes, which others may have written.
        Raises CacheFullError, and then nothing was changed.
        """
        missing = self.missing_tokens(sequence, tokens) // self.block_tokens
        if missing > self._num_free:
            raise CacheFullError(
                f"sequence {sequence!r} needs {missing * self.block_tokens} more tokens of cache, "
                f"{self.free_tokens} of {self.capacity_tokens} are free"
            )
        held = self._sequences.setdefault(sequence, _Sequence())
        taken: list[Run] = []
        while missing:
            run = self._next_run(held, missing)
            self._take(run)
            taken.append(Run(run.begin * self.block_tokens, run.length * self.block_tokens))
            last = held.extents[-1] if held.extents else None
            if last is not None and last.begin + last.length == run.begin:
                held.extents[-1] = Run(last.begin, last.length + run.length)
            else:
                held.extents.append(run)
            missing -= run.length
        return taken

    def advance(self, sequence: SequenceId, tokens: int) -> None:
        """Count `tokens` as written, for which there was room. Raises ValueError without room."""
        held = self._sequences[sequence]
        if held.length + tokens > held.num_blocks * self.block_tokens:
            raise ValueError(f"sequence {sequence!r} has no room for {tokens} more tokens: reserve")
        held.length += tokens

    def slots(self, sequence: SequenceId, start: int, stop: int) -> list[Run]:
        """Return the slots of positions `start` to `stop` of a sequence, in order, a run a slab."""
        runs: list[Run] = []
        first = 0
        for extent in self._sequences[sequence].extents:
            size = extent.length * self.block_tokens
            low, high = max(start, first), min(stop, first + size)
            if low < high:
                runs.append(Run(extent.begin * self.block_tokens + low - first, high - low))
            first += size
        return runs

    def share(self, source: SequenceId, sequence: SequenceId, tokens: int) -> None:
        """Begin a sequence with the first `tokens` of another one, without a copy.

        Raises ValueError unless these are whole blocks that the source has written, and the
        sequence is new.
        """
        held = self._sequences[source]
        if tokens % self.block_tokens or not 0 < tokens <= held.length:
            raise ValueError(
                f"{tokens} tokens of {source!r} can't be shared; allowed multiples of "
                f"{self.block_tokens} up to its length {held.length}"
            )
        if sequence in self._sequences:
            raise ValueError(f"sequence {sequence!r} is there already")
        blocks, extents = tokens // self.block_tokens, list[Run]()
        for extent in held.extents:
            count = min(extent.length, blocks)
            if count:
                extents.append(Run(extent.begin, count))
                blocks -= count
        for block in _blocks(extents):
            self._references[block] += 1
        self._sequences[sequence] = _Sequence(extents, tokens)

    def release(self, sequence: SequenceId) -> None:
        """Forget a sequence; its blocks are free unless others share them. Unknown: nothing."""
        held = self._sequences.pop(sequence, None)
        for block in _blocks(held.extents if held else ()):
            self._references[block] -= 1
            self._num_free += self._references[block] == 0

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is counted as often as it is held.

        And: no sequence is longer than its room or holds an empty block too many, blocks that are
        shared are full for all who hold them, the number of free blocks is right.
        """
        counted = Counter(
            block for held in self._sequences.values() for block in _blocks(held.extents)
        )
        for block, references in enumerate(self._references):
            assert counted[block] == references, f"block {block}: {references} references"
        assert self._num_free == self._references.count(0), "wrong number of free blocks"
        for sequence, held in self._sequences.items():
            room = held.num_blocks * self.block_tokens
            assert held.length <= room, f"{sequence!r} is longer than its room"
            for i, block in enumerate(_blocks(held.extents)):
                full = (i + 1) * self.block_tokens <= held.length
                assert full or self._references[block] == 1, f"{sequence!r} could write shared"

    def _next_run(self, held: _Sequence, wanted: int) -> Run:
        """The free run to take next: behind the last extent, else of the longest, or all of that.

        In the middle of it: whoever ends before it can grow as far in place as what begins here.
        """
        if held.extents:
            behind = self._free_run(held.extents[-1].begin + held.extents[-1].length, wanted)
            if behind.length:
                return behind
        longest, block = Run(0, 0), 0
        while block < len(self._references):
            run = self._free_run(block, len(self._references))
            longest = max(longest, run, key=lambda each: each.length)
            block += run.length + 1
        if longest.length <= wanted:
            return longest
        before = (longest.length - wanted) // 2 if longest.begin else 0  # nobody ends before 0
        return Run(longest.begin + before, wanted)

    def _free_run(self, begin: int, most: int) -> Run:
        end = begin
        while end < len(self._references) and end - begin < most and not self._references[end]:
            end += 1
        return Run(begin, end - begin)

    def _take(self, run: Run) -> None:
        for block in range(run.begin, run.begin + run.length):
            self._references[block] = 1
        self._num_free -= run.length


def _blocks(extents: list[Run] | tuple[()]) -> list[int]:
    return [block for begin, count in extents for block in range(begin, begin + count)]
