"""Cutting an iteration into micro-batches, of which one enters a stage as another leaves it.

A prompt's next chunk needs what the one before it has written at the same stage, not what comes out
of the last one: so the chunks of one prompt may be in several stages at once (sequence pipelining,
Medha, arXiv 2409.17264 section 3.2), and its time falls almost by the number of stages.
"""

from __future__ import annotations

from collections.abc import Sequence

from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel.messages import ChunkRows, MicroBatch
from subnetact.parallel.shard_table import ShardSpan, ShardTable

Placed = dict[int | str, list[ShardSpan]]


def cut(chunks: Sequence[Chunk], most_tokens: int | None) -> list[list[Chunk]]:
    """Cut chunks, in order, into runs of equally many tokens, `most_tokens` at most (None: one).

    >>> cut([Chunk("a", (1, 2, 3)), Chunk("b", (4,))], 2)  # doctest: +NORMALIZE_WHITESPACE
    [[Chunk(sequence='a', ids=(1, 2), samples=False)],
     [Chunk(sequence='a', ids=(3,), samples=True), Chunk(sequence='b', ids=(4,), samples=True)]]
    """
    total = sum(len(chunk.ids) for chunk in chunks)
    if most_tokens is None or total <= most_tokens:
        return [list(chunks)]
    size = -(-total // -(-total // most_tokens))
    batches: list[list[Chunk]] = [[]]
    room = size
    for sequence, ids, samples in chunks:
        at = 0
        while at < len(ids):
            if not room:
                batches.append([])
                room = size
            part = ids[at : at + room]
            at, room = at + len(part), room - len(part)
            batches[-1].append(Chunk(sequence, part, samples and at == len(ids)))
    return batches


def plan_batches(
    table: ShardTable, batches: Sequence[Sequence[Chunk]]
) -> tuple[list[list[MicroBatch]], Placed]:
    """Place every token; return each shard's view of the micro-batches, and where tokens went.

    Raises CacheFullError; nothing counts before the caller commits what was placed.
    """
    shards = table.num_shards
    planned: list[list[MicroBatch]] = [[] for _ in range(shards)]
    placed: Placed = {}
    for chunks in batches:
        ids: list[int] = []
        positions: list[int] = []
        sampled: list[int] = []
        rows: list[list[ChunkRows]] = [[] for _ in range(shards)]
        for sequence, part, samples in chunks:
            before = placed.get(sequence, [])
            start = table.length(sequence) + sum(span.length for span in before)
            spans = table.place(sequence, len(part), before)
            reads = table.reads(sequence, before, spans)
            for shard in range(shards):
                rows[shard].append(ChunkRows(len(ids), len(part), reads[shard]))
            placed[sequence] = [*before, *spans]
            ids += part
            positions += range(start, start + len(part))
            if samples:
                sampled.append(len(ids) - 1)
        common = tuple(ids), tuple(positions), tuple(sampled)
        for shard in range(shards):
            planned[shard].append(MicroBatch(*common, tuple(rows[shard])))
    return planned, placed
