"""Measuring what a grid of workers costs, and from which context on its shards pay.

Decodes behind contexts that were never computed but hold random keys and values: memory that
nobody has written is all one page, and read from the cache. On one shard and on all in turn, so
that what disturbs one disturbs the other; each time several in a row, as a stream's are, since the
first pays for what the other has left of caches; the best of all, as an exchange waits for the
later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from slackfit.streams.parallel_cost import ParallelCost, break_even_tokens
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.parallel.parallel_executor import ParallelExecutor

NOWHERE = 2**40
"""A break-even context that no stream reaches."""

CONTEXTS = (1024, 2048, 4096, 8192)
_CHUNK = 64
_SHORT = 64
_IN_A_ROW = 3

Tell = Callable[[str], None]


class MeasuredGrid(NamedTuple):
    """What a grid costs, and the best seconds of a decode by context, on one shard and on all."""

    cost: ParallelCost
    alone_s: list[tuple[int, float]]
    spread_s: list[tuple[int, float]]


def measure_grid(
    executor: ParallelExecutor,
    plain: StreamExecutor,
    *,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 5,
    tell: Tell = lambda text: None,
) -> MeasuredGrid:
    """Return the measured cost of an executor's grid, on its widest subnet; it holds no stream.

    `plain` is the same decoder in this process: what hops between stages take is the difference.
    Where shards pay at no context the break-even is `NOWHERE`. Raises ValueError for fewer than two
    contexts or one that is too long, CacheFullError for more than shards keep.
    """
    longest = longest_context(executor.max_positions, repeats)
    if len(set(contexts)) < 2 or min(contexts) < 1 or max(contexts) > longest:
        raise ValueError(f"contexts are {list(contexts)}, allowed two or more of 1 to {longest}")
    grid = executor.grid
    hop_s = gather_s = gather_token_s = 0.0
    linear_share = 1.0
    alone: list[tuple[int, float]] = []
    spread: list[tuple[int, float]] = []
    if grid.stages > 1:
        added_s = best_decode_s(executor, _SHORT, repeats).alone - plain_decode_s(plain, repeats)
        hop_s = max(0.0, added_s) / (grid.stages - 1)
    even = 0
    if grid.shards > 1:
        for context in sorted(set(contexts)):
            best = best_decode_s(executor, context, repeats)
            tell(f"context {context}: {best.alone * 1e3:.2f} ms, spread {best.spread * 1e3:.2f} ms")
            alone.append((context, best.alone))
            spread.append((context, best.spread))
        found = break_even_tokens(alone, spread)
        even = NOWHERE if found is None else found
        at = executor.table.extent_tokens + _SHORT  # a stream of one extent is on one shard
        fitting = (executor.max_positions - at) // (_CHUNK * _IN_A_ROW) - 1
        if fitting < 0:
            at, fitting = _SHORT, 0  # none of this decoder ever is on several
        short = best_decode_s(executor, at, repeats)
        chunk = best_decode_s(executor, at, min(repeats, fitting), tokens=_CHUNK)
        # Of a chunk linear layers are nearly all: what shards share out of them shows in its time.
        linear_share = min(1.0, max(1.0 / grid.shards, chunk.spread / chunk.alone))
        gather_s = max(0.0, short.spread - linear_share * short.alone)
        more_s = chunk.spread - linear_share * chunk.alone - gather_s
        gather_token_s = max(0.0, more_s) / (_CHUNK - 1)
    cost = ParallelCost(
        shards=grid.shards,
        stages=grid.stages,
        break_even_tokens=even,
        gather_s=gather_s,
        gather_token_s=gather_token_s,
        hop_s=hop_s,
        micro_tokens=executor.micro_tokens,
        linear_share=linear_share,
    )
    return MeasuredGrid(cost, alone, spread)


def longest_context(max_positions: int, repeats: int) -> int:
    """Return the longest context that decodes of so many repeats can be measured behind."""
    return max_positions - (repeats + 1) * _IN_A_ROW


class BestDecode(NamedTuple):
    """The best seconds of an iteration on one shard, and on all of them."""

    alone: float
    spread: float


def best_decode_s(
    executor: ParallelExecutor, context: int, repeats: int, *, tokens: int = 1
) -> BestDecode:
    """Return the best seconds of `tokens` tokens behind `context` of them, on one shard and all."""
    table, width = executor.table, executor.subnet_ids[-1]
    before = table.spread_from
    best = {"alone": float("inf"), "spread": float("inf")}
    if executor.grid.shards == 1:
        del best["spread"]
    try:
        for name in best:
            table.spread_from = NOWHERE if name == "alone" else 0
            executor.occupy(name, context)
        for _ in range(repeats + 1):  # the first finds caches and connections cold
            for name in best:
                table.spread_from = NOWHERE if name == "alone" else 0
                for _ in range(_IN_A_ROW):
                    start_s = time.perf_counter()
                    executor.run(width, [Chunk(name, (1,) * tokens)])
                    best[name] = min(best[name], time.perf_counter() - start_s)
    finally:
        table.spread_from = before
        for name in best:
            executor.release(name)
    return BestDecode(best["alone"], best.get("spread", best["alone"]))


def plain_decode_s(plain: StreamExecutor, repeats: int) -> float:
    """Return the best seconds of a decode behind a short context, on one executor."""
    table, width = plain.cache.table, plain.subnet_ids[-1]
    best_s = float("inf")
    try:
        table.reserve("plain", _SHORT)
        table.advance("plain", _SHORT)
        (run,) = table.slots("plain", 0, _SHORT)
        plain.cache.fill(torch.arange(run.begin, run.begin + run.length), seed=0)
        for _ in range(repeats + 1):
            start_s = time.perf_counter()
            plain.run(width, [Chunk("plain", (1,))])
            best_s = min(best_s, time.perf_counter() - start_s)
    finally:
        plain.release("plain")
    return best_s
