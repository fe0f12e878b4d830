"""Parts of a context, attended to one by one and merged, are attention over the whole of it."""

from __future__ import annotations

import random

import pytest
import torch

from subnetact.decoding.attention import has_log_sum_exp
from subnetact.decoding.extents import Run
from subnetact.decoding.kv_cache import CacheShape, KVCache
from subnetact.parallel import partial_attention, shard_attention
from subnetact.parallel.messages import ChunkRows
from subnetact.parallel.partial_attention import attend_part, merge_parts, plan_reads
from subnetact.parallel.shard_attention import ShardAttention
from subnetact.parallel.shard_table import Fresh, ShardReads, ShardTable

RANKS, GROUPS, HEAD_DIM = 3, 2, 16


def whole64(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int
) -> torch.Tensor:
    """Plain causal attention in double precision; query (rows, ranks, groups, D)."""
    query, keys, values = query.double(), keys.double(), values.double()
    scores = torch.einsum("nrgd,gsd->rgns", query, keys) / HEAD_DIM**0.5
    rows, slots = len(query), keys.shape[1]
    unseen = torch.arange(slots) > torch.arange(start, start + rows)[:, None]
    return torch.einsum(
        "rgns,gsd->nrgd", scores.masked_fill(unseen, -torch.inf).softmax(-1), values
    )


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_uneven_parts_are_the_whole(
    seed: int, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two or three workers, growth on the way, one that holds nothing for a while."""
    if is_plain:
        monkeypatch.setattr(partial_attention, "has_log_sum_exp", lambda: False)
    elif not has_log_sum_exp():
        pytest.skip("no attention with a log-sum-exp in this build of torch")
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shards = draw.choice((2, 3))
    table = ShardTable(shards, 512, block_tokens=4, extent_tokens=draw.choice((4, 16, 64)))
    pools = [torch.zeros(2, GROUPS, 512, HEAD_DIM) for _ in range(shards)]
    keys, values = torch.zeros(2, GROUPS, 0, HEAD_DIM)
    for _ in range(8):
        rows, start = draw.choice((1, draw.randint(2, 60))), keys.shape[1]
        table.spread_from = draw.choice((0, 40, 1000))
        query = torch.randn(rows, RANKS, GROUPS, HEAD_DIM, generator=generator) * 3
        fresh = torch.randn(2, GROUPS, rows, HEAD_DIM, generator=generator)
        keys, values = (torch.cat(pair, 1) for pair in ((keys, fresh[0]), (values, fresh[1])))
        spans = table.place("a", rows)
        parts = []
        for pool, reads in zip(pools, table.reads("a", (), spans), strict=True):
            for first, run in reads.fresh:
                pool[:, :, run.begin : run.begin + run.length] = fresh[
                    :, :, first : first + run.length
                ]
            slabs = plan_reads(reads, rows, RANKS, query)
            views = [tuple(pool.narrow(2, slab.run.begin, slab.run.length)) for slab in slabs]
            parts.append(attend_part(query, slabs, views))
        table.commit("a", spans)
        mixed = merge_parts(*(torch.stack(part) for part in zip(*parts, strict=True)))
        expected = whole64(query, keys, values, start)
        error = (mixed - expected).abs().max() / expected.abs().max()
        assert error <= 1e-6


def test_a_worker_that_holds_nothing_counts_for_nothing() -> None:
    query = torch.ones(2, RANKS, GROUPS, HEAD_DIM)
    mixed, norm = attend_part(
        query, plan_reads(partial_attention.ShardReads(), 2, RANKS, query), []
    )
    assert mixed.eq(0).all()
    assert norm.eq(-torch.inf).all()
    other = torch.rand(2, RANKS, GROUPS, HEAD_DIM)
    merged = merge_parts(torch.stack((mixed, other)), torch.stack((norm, torch.zeros_like(norm))))
    assert merged.equal(other)


def test_an_operator_of_other_devices_is_tried_with_values_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is none for this device; one that answers otherwise is not used, one that agrees is."""
    device = torch.device("cpu")
    assert not partial_attention.has_efficient.__wrapped__(device)
    wrong = lambda query, keys, values: (query, query[..., 0])  # noqa: E731
    monkeypatch.setattr(partial_attention, "efficient_slab", wrong)
    assert not partial_attention.has_efficient.__wrapped__(device)
    right = lambda *tensors: partial_attention.plain_slab(*tensors, None)  # noqa: E731
    monkeypatch.setattr(partial_attention, "efficient_slab", right)
    assert partial_attention.has_efficient.__wrapped__(device)


DECODES = [
    ChunkRows(0, 1, ShardReads((Run(0, 20),), (Fresh(0, Run(20, 1)),))),  # read as one slab
    ChunkRows(1, 1, ShardReads((Run(40, 33),))),
]
SPLIT = ChunkRows(2, 1, ShardReads((Run(80, 9), Run(100, 30)), (Fresh(0, Run(140, 1)),)))
ELSEWHERE = ChunkRows(3, 1, ShardReads())
PROMPT = ChunkRows(4, 5, ShardReads((Run(150, 12),), (Fresh(2, Run(170, 3)),)))


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("chunks", [DECODES, [*DECODES, SPLIT, ELSEWHERE, PROMPT]])
def test_what_is_planned_for_all_layers_is_attended_to_as_one_by_one(
    chunks: list[ChunkRows], is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_plain:
        monkeypatch.setattr(shard_attention, "has_log_sum_exp", lambda: False)
    elif not has_log_sum_exp():
        pytest.skip("no attention with a log-sum-exp in this build of torch")
    cache = KVCache(CacheShape(2, GROUPS, HEAD_DIM), 256, block_tokens=4)
    generator = torch.Generator().manual_seed(0)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=generator))
    cache.values.copy_(torch.randn(cache.values.shape, generator=generator))
    rows = sum(chunk.rows for chunk in chunks)
    here = ShardAttention(chunks, cache, RANKS)
    for layer in (0, 1):
        query = torch.randn(rows, RANKS, GROUPS, HEAD_DIM, generator=generator)
        part = here.part(query, layer)
        for first, count, reads in chunks:
            own = query[first : first + count]
            slabs = plan_reads(reads, count, RANKS, own)
            views = [cache.view(layer, slab.run) for slab in slabs]
            mixed, norm = attend_part(own, slabs, views)
            found = part[first : first + count]
            torch.testing.assert_close(found[..., :-1], mixed, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found[..., -1], norm, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(here.whole(query, layer), part[..., :-1], rtol=1e-5, atol=1e-6)


def test_what_a_decode_writes_behind_what_it_reads_is_read_with_it() -> None:
    like = torch.zeros(1)
    (slab,) = plan_reads(DECODES[0].reads, 1, RANKS, like)
    assert (slab.run, slab.mask) == (Run(0, 21), None)
    assert len(plan_reads(SPLIT.reads, 1, RANKS, like)) == 3
