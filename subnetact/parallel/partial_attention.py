"""Attention over a part of a context, with its log-sum-exp; parts add up to the whole exactly.

Worker w has o_w = softmax(q k_w^T) v_w and the log-sum-exp l_w of its scores. With
l = logsumexp(l_w) the whole is sum(o_w exp(l_w - l)) (Milakov and Gimelshein, 2018; Medha, arXiv
2409.17264 section 3.3). A worker that has nothing that a row sees says -inf and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from subnetact.decoding.attention import Slab, flash_operator, has_log_sum_exp
from subnetact.decoding.extents import Run
from subnetact.parallel.shard_table import ShardReads

Views = tuple[torch.Tensor, torch.Tensor]  # keys and values (groups, slots, D)


def plan_reads(reads: ShardReads, rows: int, ranks: int, like: torch.Tensor) -> list[Slab]:
    """Lay out, for all layers alike, what `rows` rows of a chunk read: the past, then fresh slots.

    Every row reads all of the past. Of fresh slots, which rows from `first_row` on write, a row
    reads those up to its own; masks are (ranks * rows, slots), of the kind of `like`. What one row
    writes behind what it reads is read with it.
    """
    slabs = [Slab(run, 0, rows, None) for run in reads.past]
    for first_row, run in reads.fresh:
        if rows == 1 and slabs and _end(slabs[-1].run) == run.begin:
            before = slabs.pop().run
            slabs.append(Slab(Run(before.begin, before.length + run.length), 0, 1, None))
            continue
        mask = None
        if run.length > 1:
            seeing = torch.arange(rows - first_row, device=like.device)
            slots = torch.arange(run.length, device=like.device)
            visible = (slots <= seeing[:, None]).repeat(ranks, 1)
            mask = like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        slabs.append(Slab(run, first_row, rows, mask))
    return slabs


def attend_part(
    query: torch.Tensor, slabs: Sequence[Slab], views: Sequence[Views]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over `slabs` and its log-sum-exp: (rows, ranks, groups, D), without D.

    `query` is (rows, ranks, groups, D), `views` are keys and values of each slab. Rows that see
    none of it get zeros and -inf.
    """
    if len(slabs) == 1 and not slabs[0].first_row:
        return attend_slab(query, *views[0], slabs[0].mask)
    mixed = query.new_zeros(query.shape)
    norm = query.new_full(query.shape[:-1], -torch.inf)
    for slab, (keys, values) in zip(slabs, views, strict=True):
        first_row = slab.first_row
        part, part_norm = attend_slab(query[first_row:], keys, values, slab.mask)
        seen, seen_norm = mixed[first_row:], norm[first_row:]
        total = torch.logaddexp(seen_norm, part_norm)
        mixed[first_row:] = (
            seen * (seen_norm - total).exp()[..., None]
            + part * (part_norm - total).exp()[..., None]
        )
        norm[first_row:] = total
    return mixed, norm


def merge_parts(mixed: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Return the whole of parts (workers, rows, ...): `mixed` with D, `norm` without."""
    return (mixed * norm.softmax(0)[..., None]).sum(0)


def attend_slab(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over one slab and its log-sum-exp; see `attend_part` for the shapes.

    The query heads of a group are folded into the query's length, so keys and values are read once.
    """
    rows, ranks = query.shape[:2]
    folded = query.permute(2, 1, 0, 3).flatten(1, 2)  # (groups, ranks * rows, D)
    if query.device.type == "cpu" and has_log_sum_exp():
        found = flash_operator()(folded[None], keys[None], values[None], 0.0, False, attn_mask=mask)
        mixed, norm = found[0][0], found[1][0]
    elif query.device.type == "cuda" and mask is None and has_efficient(query.device):
        mixed, norm = efficient_slab(folded, keys, values)
    else:
        mixed, norm = plain_slab(folded, keys, values, mask)
    return _unfold(mixed, rows, ranks), _unfold(norm, rows, ranks)


def efficient_slab(
    folded: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `plain_slab` without a mask, by torch's memory-efficient attention on CUDA devices."""
    operator = torch.ops.aten._scaled_dot_product_efficient_attention.default
    found = operator(folded[None], keys[None], values[None], None, True)
    return found[0][0], found[1][0, :, : folded.shape[1]]  # rows are padded there


@cache
def has_efficient(device: torch.device) -> bool:
    """Whether `efficient_slab` gives on a device what `plain_slab` gives, tried with values."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(2, n, 64, generator=generator).to(device) for n in (3, 70, 70))
    query, keys, values = drawn
    try:
        found = efficient_slab(query, keys, values)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    expected = plain_slab(query, keys, values, None)
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def plain_slab(
    folded: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As torch's operator, in operators that are public: (groups, N, D) and (groups, N)."""
    scores = folded @ keys.transpose(1, 2) / folded.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def _unfold(tensor: torch.Tensor, rows: int, ranks: int) -> torch.Tensor:
    """(groups, ranks * rows, ...) to (rows, ranks, groups, ...)."""
    return tensor.unflatten(1, (ranks, rows)).movedim((0, 1, 2), (2, 1, 0))


def _end(run: Run) -> int:
    return run.begin + run.length
