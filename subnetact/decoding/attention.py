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

_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
_LEAST_PAIRS = 2**17
"""Rows times tokens before them, below which a mask over all costs less than one call more."""


class Slab(NamedTuple):
    """A run of slots that rows `first_row` to `stop_row` of a chunk see; `mask` where not all."""

    run: Run
    first_row: int
    stop_row: int
    mask: torch.Tensor | None


def first_visible(start: int, window: int) -> int:
    """The first position that a token at `start` reads with a window (0: all before it).

    >>> first_visible(9, 4), first_visible(2, 4), first_visible(9, 0)
    (6, 0, 0)
    """
    return max(0, start + 1 - window) if window else 0


def plan_slabs(
    runs: list[Run], start: int, rows: int, ranks: int, *, window: int = 0
) -> list[Slab]:
    """Return what a chunk of `rows` tokens at position `start` attends to, for layers alike.

    `runs` are the slots from `first_visible(start, window)` on. Rows that see nothing of a slab are
    left out: those before its first position, and those whose window lies behind its last. A mask
    (ranks * rows, slots) says what the others see where that is not all. A run that begins long
    before the chunk is two slabs, so that the mask is of the chunk alone, and not of all before it.
    """
    slabs: list[Slab] = []
    begin = first_visible(start, window)
    is_cut_up = rows > 1 and has_log_sum_exp()
    for run in _cut_at(runs, start - begin, rows) if is_cut_up else runs:
        end = begin + run.length
        first_row = max(0, begin - start)
        stop_row = min(rows, end - 1 + window - start) if window else rows
        queries = torch.arange(start + first_row, start + stop_row)
        reaches_beyond = end > start + first_row + 1
        is_cut = window > 0 and begin < first_visible(start + stop_row - 1, window)
        mask = None
        if reaches_beyond or is_cut:
            distance = queries[:, None] - torch.arange(begin, end)
            visible = distance >= 0
            if window:
                visible &= distance < window
            visible = visible.repeat(ranks, 1)
            mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        slabs.append(Slab(run, first_row, stop_row, mask))
        begin = end
    return slabs


def _cut_at(runs: list[Run], at: int, rows: int) -> Iterator[Run]:
    """Cut the run in which the slot at `at` of all lies there, where there is much before it."""
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
    mixed = torch.zeros_like(query, memory_format=torch.contiguous_format)
    norm = query.new_full(query.shape[:-1], -torch.inf)
    for slab, (keys, values) in zip(slabs, views, strict=True):
        seeing = slice(slab.first_row, slab.stop_row)
        part, part_norm = _flash(query[seeing], keys, values, slab.mask)
        seen, seen_norm = mixed[seeing], norm[seeing]
        total = torch.logaddexp(seen_norm, part_norm)
        weighted = seen * (seen_norm - total).exp()[..., None]
        mixed[seeing] = weighted + part * (part_norm - total).exp()[..., None]
        norm[seeing] = total
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
    return getattr(torch, _FLASH)


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
    query: torch.Tensor,
    slabs: list[Slab],
    views: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    rows, ranks = query.shape[:2]
    keys, values = (torch.cat([view[i] for view in views], 1)[None] for i in (0, 1))
    whole = query.new_full((ranks, rows, keys.shape[2]), -torch.inf)
    begin = 0
    for slab in slabs:
        part = whole[:, slab.first_row : slab.stop_row, begin : begin + slab.run.length]
        part.copy_(query.new_zeros(()) if slab.mask is None else slab.mask.view(part.shape))
        begin += slab.run.length
    mixed = F.scaled_dot_product_attention(
        _fold(query), keys, values, attn_mask=whole.flatten(0, 1)
    )
    return _unfold(mixed[0], rows, ranks)


def _fold(query: torch.Tensor) -> torch.Tensor:
    """(rows, ranks, groups, D) to (1, groups, ranks * rows, D)."""
    return query.permute(2, 1, 0, 3).flatten(1, 2)[None]


def _unfold(tensor: torch.Tensor, rows: int, ranks: int) -> torch.Tensor:
    """(groups, ranks * rows, ...) to (rows, ranks, groups, ...)."""
    return tensor.unflatten(1, (ranks, rows)).movedim((0, 1, 2), (2, 1, 0))
