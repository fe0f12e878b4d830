"""Attention over a part of a context, with its log-sum-exp; parts add up to the whole exactly.

Worker w has o_w = softmax(q k_w^T) v_w and the log-sum-exp l_w of its scores. With
l = logsumexp(l_w) the whole is sum(o_w exp(l_w - l)) (Milakov and Gimelshein, 2018; Medha, arXiv
2409.17264 section 3.3). A worker that has nothing that a row sees says -inf and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from subnetact.decoding.attention import has_log_sum_exp
from subnetact.parallel.shard_table import ShardReads

Views = tuple[torch.Tensor, torch.Tensor]  # keys and values (groups, slots, D)


class ReadPlan(NamedTuple):
    """Of one chunk's reads: per slab the first row that sees it, and a mask where not all is."""

    first_rows: tuple[int, ...]
    masks: tuple[torch.Tensor | None, ...]


def plan_reads(reads: ShardReads, rows: int, ranks: int, dtype: torch.dtype) -> ReadPlan:
    """Lay out, for all layers alike, what `rows` rows of a chunk read: the past, then fresh slots.

    Every row reads all of the past. Of fresh slots, which rows from `first_row` on write, a row
    reads those up to its own; masks are (ranks * rows, slots).
    """
    first_rows, masks = [0] * len(reads.past), list[torch.Tensor | None]([None] * len(reads.past))
    for first_row, run in reads.fresh:
        seeing = torch.arange(rows - first_row)
        mask = None
        if run.length > 1:
            visible = (torch.arange(run.length) <= seeing[:, None]).repeat(ranks, 1)
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
        first_rows.append(first_row)
        masks.append(mask)
    return ReadPlan(tuple(first_rows), tuple(masks))


def attend_part(
    query: torch.Tensor, plan: ReadPlan, slabs: Sequence[Views]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over `slabs` and its log-sum-exp: (rows, ranks, groups, D), without D.

    `query` is (rows, ranks, groups, D). Rows that see none of it get zeros and -inf.
    """
    mixed = query.new_zeros(query.shape)
    norm = query.new_full(query.shape[:-1], -torch.inf)
    for first_row, mask, (keys, values) in zip(plan.first_rows, plan.masks, slabs, strict=True):
        part, part_norm = attend_slab(query[first_row:], keys, values, mask)
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
    if has_log_sum_exp():
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        found = flash(folded[None], keys[None], values[None], 0.0, False, attn_mask=mask)
        mixed, norm = found[0][0], found[1][0]
    else:
        mixed, norm = plain_slab(folded, keys, values, mask)
    return _unfold(mixed, rows, ranks), _unfold(norm, rows, ranks)


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
