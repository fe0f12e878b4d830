"""Attention of one chunk over the slabs in which its sequence lies, merged exactly.

The query heads of a group are folded into the query's length, so keys and values are read once and
never repeated. Several slabs give several softmaxes, each with its log-sum-exp; their weighted sum
is the softmax over all (Milakov and Gimelshein, 2018; as in ring attention and FlashDecoding).

The log-sum-exp comes from an operator of torch that is not public. It is tried with values when it
is first needed; where it is absent or answers otherwise, the slabs are joined by a copy instead.
Decodes, which are many and short, go by `decode_attention.py`; this is their twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional as F

from subnetact.decoding.extents import Run

_LEAST_PAIRS = 2**17
"""Rows times tokens before them, below which a mask over all costs less than one call more."""


class Slab(NamedTuple):
    """A run of slots that a chunk attends to, from its row `first_row` on; `mask` where not all."""

    run: Run
    first_row: int
    mask: torch.Tensor | None


def plan_slabs(runs: list[Run], start: int, rows: int, ranks: int) -> list[Slab]:
    """Return what a chunk of `rows` tokens at position `start` attends to, for all layers alike.

    Rows before a slab's first position do not see it; a mask (ranks * rows, slots) says what the
    others see of one that reaches beyond them. A run that begins long before the chunk is two
    slabs, so that the mask is of the chunk alone, and not of all that came before.
    """
    slabs: list[Slab] = []
    begin = 0
    for run in _cut_at(runs, start, rows) if rows > 1 and has_log_sum_exp() else runs:
        first_row = max(0, begin - start)
        mask = None
        if begin + run.length > start + first_row + 1:
            positions = torch.arange(begin, begin + run.length)
            queries = torch.arange(start + first_row, start + rows)
            visible = (positions <= queries[:, None]).repeat(ranks, 1)
            mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        slabs.append(Slab(run, first_row, mask))
        begin += run.length
    return slabs


def _cut_at(runs: list[Run], start: int, rows: int) -> Iterator[Run]:
    """Cut the run in which position `start` lies there, where there is much before it."""
    at = start
    for begin, length in runs:
        if 0 < at < length and rows * at >= _LEAST_PAIRS:
            yield Run(begin, at)
            yield Run(begin + at, length - at)
        else:
            yield Run(begin, length)
        at -= length


def attend(
    query: torch.Tensor, slabs: list[Slab], views: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(D)) v of one chunk; query and result (rows, ranks, groups, D).

    `views` are keys and values (groups, slots, D) of each slab.
    """
    rows, ranks = query.shape[:2]
    if len(slabs) > 1 and not has_log_sum_exp():
        return _attend_joined(query, slabs, views)
    if len(slabs) == 1:
        (keys, values), mask = views[0], slabs[0].mask
        folded = _fold(query)
        mixed = F.scaled_dot_product_attention(folded, keys[None], values[None], attn_mask=mask)
        return _unfold(mixed[0], rows, ranks)
    mixed, norm = _flash(query, *views[0], slabs[0].mask)
    for slab, (keys, values) in zip(slabs[1:], views[1:], strict=True):
        part, part_norm = _flash(query[slab.first_row :], keys, values, slab.mask)
        seen, seen_norm = mixed[slab.first_row :], norm[slab.first_row :]
        total = torch.logaddexp(seen_norm, part_norm)
        weighted = seen * (seen_norm - total).exp()[..., None]
        mixed[slab.first_row :] = weighted + part * (part_norm - total).exp()[..., None]
        norm[slab.first_row :] = total
    return mixed


@cache
def has_log_sum_exp() -> bool:
    """Whether torch's CPU attention gives its log-sum-exp here, and the right one."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, 2, n, 16, generator=generator) for n in (3, 5, 5))
    scores = query @ keys.transpose(-1, -2) / 4
    try:
        mixed, norm = flash_operator()(query, keys, values, 0.0, False, attn_mask=None)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    right = torch.allclose(mixed, scores.softmax(-1) @ values, atol=1e-5)
    return right and torch.allclose(norm, scores.logsumexp(-1), atol=1e-5)


def flash_operator():
    """Return torch's operator of (query, keys, values) (B, heads, N, D) and more.

    Its results are attention and log-sum-exp (B, heads, N). Raises AttributeError where it is not.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over one slab and its log-sum-exp, (rows, ranks, groups, D) and without D."""
    rows, ranks = query.shape[:2]
    mixed, norm = flash_operator()(
        _fold(query), keys[None], values[None], 0.0, False, attn_mask=mask
    )
    return _unfold(mixed[0], rows, ranks).contiguous(), _unfold(norm[0], rows, ranks).contiguous()


def _attend_joined(
    query: torch.Tensor, slabs: list[Slab], views: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    rows, ranks = query.shape[:2]
    keys, values = (torch.cat([view[i] for view in views], 1)[None] for i in (0, 1))
    end = sum(slab.run.length for slab in slabs)
    (joined,) = plan_slabs([Run(0, end)], end - rows, rows, ranks)
    mixed = F.scaled_dot_product_attention(_fold(query), keys, values, attn_mask=joined.mask)
    return _unfold(mixed[0], rows, ranks)


def _fold(query: torch.Tensor) -> torch.Tensor:
    """(rows, ranks, groups, D) to (1, groups, ranks * rows, D)."""
    return query.permute(2, 1, 0, 3).flatten(1, 2)[None]


def _unfold(tensor: torch.Tensor, rows: int, ranks: int) -> torch.Tensor:
    """(groups, ranks * rows, ...) to (rows, ranks, groups, ...)."""
    return tensor.unflatten(1, (ranks, rows)).movedim((0, 1, 2), (2, 1, 0))
