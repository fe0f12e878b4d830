"""Attention over pages that are gathered: one call for many streams, as devices like it.

On a CPU slabs are read as they lie (`attention.py`, which tests hold this equal to).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def page_slots(pages: torch.Tensor, page_tokens: int) -> torch.Tensor:
    """The slots of pages (b, p), one behind the other: (b, p * page_tokens).

    >>> page_slots(torch.tensor([[2, 0]]), 3)
    tensor([[6, 7, 8, 0, 1, 2]])
    """
    within = torch.arange(page_tokens, device=pages.device)
    return (pages.unsqueeze(2) * page_tokens + within).flatten(1)


def visible_positions(positions: torch.Tensor, length: int, window: int = 0) -> torch.Tensor:
    """Which of the first `length` positions rows at `positions` (b, c) read: (b, c, length).

    All up to their own, or with a window the last so many of them.

    >>> visible_positions(torch.tensor([[2]]), 4, window=2).tolist()
    [[[False, True, True, False]]]
    """
    distance = positions.unsqueeze(2) - torch.arange(length, device=positions.device)
    visible = distance >= 0
    return visible & (distance < window) if window else visible


def attend_gathered(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reads: torch.Tensor,
    visible: torch.Tensor,
) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(D)) v of b streams with c rows each, stream after stream.

    Query and result are (b * c, ranks, groups, D), keys and values (groups, slots, D) of all
    streams; `reads` (b, M) are the slots of each stream's positions, `visible` (b, c, M) which of
    them a row sees. The query heads of a group are folded into the query's length. What lies in
    slots that no row sees must be finite: it is weighted by 0, not left out.
    """
    streams, count, length = visible.shape
    ranks = query.shape[1]
    folded = query.unflatten(0, (streams, count)).permute(0, 3, 2, 1, 4).flatten(2, 3)
    own_keys, own_values = (
        pool.index_select(1, reads.flatten()).unflatten(1, reads.shape).transpose(0, 1)
        for pool in (keys, values)
    )  # (b, groups, M, D)
    mask = visible[:, None, None].expand(streams, 1, ranks, count, length).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(folded, own_keys, own_values, attn_mask=mask)
    return mixed.unflatten(2, (ranks, count)).permute(0, 3, 2, 1, 4).flatten(0, 1)
