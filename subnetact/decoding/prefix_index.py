"""`PrefixIndex`: beginnings of texts whose keys and values stay when their stream has ended.

A key or value is a function of the text up to it and of the widths that computed it, so a beginning
is kept under both: what it says, block by block, and the lowest quality of a width that wrote into
it. A later text takes the longest beginning that was written at least as well as it would be
computed itself; so a hit never lowers a text's quality, and is never missed because it is better.

Texts are compared token by token along a tree of blocks (as SGLang's radix cache), not by hashes
alone. Who was used least lately makes room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from subnetact.decoding.extents import ExtentTable, SequenceId

_ROOT = 0


class KeptPrefix(NamedTuple):
    """The first `tokens` of a text are cached as those of `source`, written at `quality`."""

    source: SequenceId
    tokens: int
    quality: float


@dataclass(slots=True)
class _Text:
    """What a sequence holds: its ids, and of each whole or begun block the lowest quality."""

    ids: list[int] = field(default_factory=list)
    qualities: list[float] = field(default_factory=list)


class PrefixIndex:
    """Follows sequences while they are computed, and keeps their whole blocks when they end."""

    def __init__(self, table: ExtentTable) -> None:
        """Begin empty, on a table whose free blocks it may fill."""
        self._table = table
        self._texts: dict[SequenceId, _Text] = {}  # of running sequences
        self._kept: dict[str, _Text] = {}  # in order of their last use
        self._nodes: dict[tuple[int, tuple[int, ...]], int] = {}
        self._holders: dict[int, dict[str, float]] = {}  # by node, who holds it, and how well
        self._num_named = 0
        self._num_nodes = _ROOT

    def __len__(self) -> int:
        """Return how many beginnings are kept."""
        return len(self._kept)

    def wrote(self, sequence: SequenceId, start: int, ids: Sequence[int], quality: float) -> None:
        """Take note of tokens from position `start` on, and the quality of the width they ran on.

        A sequence whose tokens before that are not known, since the table shared them, is not kept.
        """
        text = self._texts.setdefault(sequence, _Text())
        if len(text.ids) != start:
            return
        block = self._table.block_tokens
        first = len(text.ids) // block
        text.ids += ids
        count = -(-len(text.ids) // block)
        for i in range(first, count):
            if i < len(text.qualities):
                text.qualities[i] = min(text.qualities[i], quality)
            else:
                text.qualities.append(quality)

    def find(self, ids: Sequence[int], least_quality: float) -> KeptPrefix | None:
        """Return the longest beginning of a text that is kept and was written well enough.

        At least one token is left to compute. Of equally long ones the best written is returned.
        """
        block, node = self._table.block_tokens, _ROOT
        found: KeptPrefix | None = None
        for end in range(block, len(ids), block):
            step = self._nodes.get((node, tuple(ids[end - block : end])))
            if step is None:
                break
            node = step
            good = {n: q for n, q in self._holders[node].items() if q >= least_quality}
            if good:
                name = max(good, key=lambda n: good[n])
                found = KeptPrefix(name, end, good[name])
        if found is not None:
            self._kept[str(found.source)] = self._kept.pop(str(found.source))
        return found

    def begin(self, sequence: SequenceId, prefix: KeptPrefix) -> None:
        """Begin a sequence with a beginning that `find` returned; nothing is copied."""
        self._table.share(prefix.source, sequence, prefix.tokens)
        kept = self._kept[str(prefix.source)]
        blocks = prefix.tokens // self._table.block_tokens
        self._texts[sequence] = _Text(kept.ids[: prefix.tokens], kept.qualities[:blocks])

    def end(self, sequence: SequenceId) -> None:
        """Keep the whole blocks of a sequence that ends; the table releases it afterwards."""
        text = self._texts.pop(sequence, None)
        blocks = 0 if text is None else len(text.ids) // self._table.block_tokens
        if text is None or not blocks or self._is_kept(text, blocks):
            return
        name = f"prefix {self._num_named}"
        self._num_named += 1
        tokens = blocks * self._table.block_tokens
        self._table.share(sequence, name, tokens)
        self._kept[name] = _Text(text.ids[:tokens], text.qualities[:blocks])
        lowest = text.qualities[0]
        node = _ROOT
        for i, ids in enumerate(self._blocks_of(text.ids, blocks)):
            lowest = min(lowest, text.qualities[i])
            node = self._node(node, ids)
            self._holders[node][name] = lowest

    def make_room(self, tokens: int) -> None:
        """Give up beginnings, those used least lately first, until `tokens` are free, or all."""
        while self._kept and self._table.free_tokens < tokens:
            self._give_up(next(iter(self._kept)))

    def _is_kept(self, text: _Text, blocks: int) -> bool:
        """Whether another sequence holds the same text, written at least as well throughout."""
        node = _ROOT
        for ids in self._blocks_of(text.ids, blocks):
            step = self._nodes.get((node, ids))
            if step is None:
                return False
            node = step
        lowest = min(text.qualities[:blocks])
        return any(
            all(a >= b for a, b in zip(self._kept[n].qualities, text.qualities, strict=False))
            for n, quality in self._holders[node].items()
            if quality >= lowest
        )

    def _node(self, parent: int, ids: tuple[int, ...]) -> int:
        key = (parent, ids)
        if key not in self._nodes:
            self._num_nodes += 1
            self._nodes[key] = self._num_nodes
            self._holders[self._num_nodes] = {}
        return self._nodes[key]

    def _give_up(self, name: str) -> None:
        text = self._kept.pop(name)
        node = _ROOT
        for ids in self._blocks_of(text.ids, len(text.qualities)):
            key = (node, ids)
            node = self._nodes[key]
            del self._holders[node][name]
            if not self._holders[node]:
                del self._holders[node], self._nodes[key]
        self._table.release(name)

    def _blocks_of(self, ids: Sequence[int], count: int) -> list[tuple[int, ...]]:
        block = self._table.block_tokens
        return [tuple(ids[i * block : (i + 1) * block]) for i in range(count)]
