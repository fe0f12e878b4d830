"""Two workers of one thread against one process of one thread, in turn, the best of each.

Each time several calls in a row: a stream's tokens follow each other, and the first after the
other's turn pays for caches that the other has filled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from serve.bench.decoder.bench import random_checkpoint
from serve.bench.rows import Row, Tell, row
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.parallel.break_even import NOWHERE, measure_grid
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from supernet.checkpoint import Checkpoint
from supernet.definition import define_supernet
from supernet.families.decoder import DecoderConfig

_SHAPE: dict[str, Any] = {
    "vocab_size": 1024, "width": 576, "depth": 4, "num_heads": 9, "num_kv_heads": 3,
    "head_dim": 64, "hidden": 1536,
}  # fmt: skip
"""Blocks of SmolLM2-135M, four of them, with a small vocabulary."""

_ATTENTION_ONLY = {**_SHAPE, "depth": 2, "hidden": 64, "vocab_size": 64}
_SPARE = 4096  # tokens that runs append
_CHUNKS, _CHUNK = 8, 512
_IN_A_ROW = 4
_One = StreamExecutor | ParallelExecutor


def kvp_rows(context: int, repeats: int, device: str = "cpu") -> list[Row]:
    """Attention at a context, and a whole token where attention is 80 % of the time."""
    with _both(_ATTENTION_ONLY, context, WorkerGrid(shards=2), device) as (plain, two):
        rest_s = _token_s(plain, 0, repeats)
        best = _tokens(plain, two, context, repeats)
        speedup = (best["plain"] - rest_s) / (best["two"] - rest_s)
    rows = [
        row(
            f"long-context/kvp2/attention_{context}_speedup",
            speedup,
            "ratio",
            f"a decode behind {context} tokens, 2 blocks, 9 heads of 64 on 3 groups, less "
            f"{rest_s * 1e3:.2f} ms of a token without context; one process "
            f"{best['plain'] * 1e3:.2f} ms, two workers {best['two'] * 1e3:.2f} ms; best of "
            f"{repeats}{_bar(device, 1.5)}",
        )
    ]
    with _both(_SHAPE, context, WorkerGrid(shards=2), device) as (plain, two):
        probe = context // 4
        rest_s, probe_s = (_token_s(plain, at, repeats) for at in (0, probe))
        at = min(context, round(4 * rest_s / max(probe_s - rest_s, 1e-9) * probe))
        best = _tokens(plain, two, at, repeats)
        share = 1 - rest_s / best["plain"]
    rows.append(
        row(
            "long-context/kvp2/token_speedup_at_80_percent_attention",
            best["plain"] / best["two"],
            "ratio",
            f"a whole token behind {at} tokens, where attention is {share:.0%} of it: 4 blocks of "
            f"SmolLM2-135M; one process {best['plain'] * 1e3:.2f} ms, two workers "
            f"{best['two'] * 1e3:.2f} ms; best of {repeats}; bar 1.3",
        )
    )
    return rows


def spp_rows(repeats: int, device: str = "cpu") -> list[Row]:
    """A prompt of 8 chunks: one process chunk by chunk, against two stages in flight."""
    with _both(_SHAPE, 2 * _CHUNKS * _CHUNK, WorkerGrid(stages=2), device) as (plain, two):
        ids = tuple(i % 64 for i in range(_CHUNKS * _CHUNK))
        width = plain.subnet_ids[-1]

        def chunked() -> None:
            for at in range(0, len(ids), _CHUNK):
                plain.run(width, [Chunk("a", ids[at : at + _CHUNK], samples=False)])
            plain.release("a")

        def whole() -> None:
            plain.run(width, [Chunk("a", ids)])
            plain.release("a")

        def staged() -> None:
            two.run(width, [Chunk("a", ids)])
            two.release("a")

        best = best_of({"chunked": chunked, "whole": whole, "staged": staged}, repeats, 1)
    return [
        row(
            "long-context/spp2/prefill_8_chunks_speedup",
            best["chunked"] / best["staged"],
            "ratio",
            f"{len(ids)} tokens in {_CHUNKS} chunks, 4 blocks of SmolLM2-135M; one process "
            f"{best['chunked']:.3f} s (in one chunk {best['whole']:.3f} s), two stages "
            f"{best['staged']:.3f} s; best of {repeats}{_bar(device, 1.4)}, ideal "
            f"{_CHUNKS / (_CHUNKS / 2 + 0.5):.2f}",
        )
    ]


def break_even_rows(repeats: int, tell: Tell, device: str = "cpu") -> list[Row]:
    """The context from which two shards are no slower, as a profile would have it."""
    checkpoint = _checkpoint(_SHAPE, 8192 + _SPARE)
    with _grid(checkpoint, WorkerGrid(shards=2), device) as two:
        plain = StreamExecutor(checkpoint, capacity_tokens=256)
        measured = measure_grid(two, plain, repeats=repeats, tell=tell)
    cost, depth = measured.cost, _SHAPE["depth"]
    at = cost.break_even_tokens
    points = ", ".join(
        f"{context}: {alone_s * 1e3:.2f} and {spread_s * 1e3:.2f} ms"
        for (context, alone_s), (_, spread_s) in zip(
            measured.alone_s, measured.spread_s, strict=True
        )
    )
    return [
        row(
            "long-context/kvp2/break_even_context",
            -1 if at >= NOWHERE else at,
            "tokens",
            f"-1: at none; a decode on one shard and on two at {points}; 4 blocks of SmolLM2-135M",
            digits=None,
        ),
        row(
            "long-context/kvp2/gather",
            cost.gather_s / depth * 1e3,
            "ms",
            f"a block, one token: what it takes beyond its share of linear layers; "
            f"{cost.gather_token_s / depth * 1e6:.2f} us each further",
        ),
        row(
            "long-context/kvp2/linear_share",
            cost.linear_share,
            "share",
            "what is left of the time of a chunk of 64 tokens where two shards share its linear "
            "layers out",
        ),
    ]


def best_of(
    calls: Mapping[str, Callable[[], object]], repeats: int, in_a_row: int = _IN_A_ROW
) -> dict[str, float]:
    """Return the least seconds of each call, in turn, after a round that does not count.

    In its turn each is called `in_a_row` times.
    """
    best = dict.fromkeys(calls, float("inf"))
    for number in range(-1, repeats):
        for name, call in calls.items():
            for _ in range(in_a_row):
                start_s = time.perf_counter()
                call()
                taken_s = time.perf_counter() - start_s
                if number >= 0:
                    best[name] = min(best[name], taken_s)
    return best


def _bar(device: str, bar: float) -> str:
    return f"; bar {bar}" if device == "cpu" else f"; {device}, no bar"


def _token_s(one: _One, context: int, repeats: int) -> float:
    """The best seconds of a decode behind `context` tokens."""
    with _decoding(one, context) as decode:
        return best_of({"one": decode}, repeats)["one"]


def _tokens(one: _One, two: ParallelExecutor, context: int, repeats: int) -> dict[str, float]:
    """The best seconds of a decode behind `context` tokens, on one worker and on two."""
    with _decoding(one, context) as alone, _decoding(two, context) as together:
        return best_of({"plain": alone, "two": together}, repeats)


@contextmanager
def _decoding(executor: _One, context: int) -> Iterator[Callable[[], object]]:
    """Have a stream hold `context` random keys and values; yields a call that decodes behind it."""
    if context and isinstance(executor, ParallelExecutor):
        executor.occupy("token", context)
    elif context and isinstance(executor, StreamExecutor):
        table = executor.cache.table
        table.reserve("token", context)
        table.advance("token", context)
        runs = table.slots("token", 0, context)
        slots = torch.cat([torch.arange(begin, begin + length) for begin, length in runs])
        executor.cache.fill(slots, seed=0)
    width = executor.subnet_ids[-1]
    try:
        yield lambda: executor.run(width, [Chunk("token", (1,))])
    finally:
        executor.release("token")


def _checkpoint(shape: Mapping[str, Any], max_positions: int) -> Checkpoint:
    return random_checkpoint(define_supernet("decoder_tiny", **shape, max_positions=max_positions))


@contextmanager
def _grid(checkpoint: Checkpoint, grid: WorkerGrid, device: str) -> Iterator[ParallelExecutor]:
    config = checkpoint.definition.config
    assert isinstance(config, DecoderConfig), "a decoder's"
    capacity = 2 * config.max_positions
    executor = ParallelExecutor(
        checkpoint, grid, capacity_tokens=capacity, micro_tokens=_CHUNK, device=device
    )
    try:
        yield executor
    finally:
        executor.close()


@contextmanager
def _both(
    shape: Mapping[str, Any], context: int, grid: WorkerGrid, device: str
) -> Iterator[tuple[_One, ParallelExecutor]]:
    """One decoder in this process (on CUDA: on one worker), and on a grid."""
    checkpoint = _checkpoint(shape, context + _SPARE)
    with _grid(checkpoint, grid, device) as two:
        if device == "cpu":
            yield StreamExecutor(checkpoint, capacity_tokens=context + _SPARE), two
            return
        with _grid(checkpoint, WorkerGrid(), device) as one:
            yield one, two
