"""`GatheredPages`: attention over a paged cache, as engines for GPUs lay it out, in plain torch.

What slabs are compared with: pages of 16 tokens anywhere in the pool, gathered for each step.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

_PAGE_TOKENS = 16


class GatheredPages:
    """Streams of equal `context` whose pages lie in a drawn order."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, context: int, seed: int):
        """Lay out keys and values (groups, slots, D), the slots stream after stream."""
        groups, slots, head_dim = keys.shape
        num_pages = slots // _PAGE_TOKENS
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(num_pages, generator=generator)
        self._tables = torch.argsort(order).view(-1, context // _PAGE_TOKENS)  # (streams, pages)
        size = (groups, num_pages, _PAGE_TOKENS, head_dim)
        # Pages as they are usually kept: (pages, tokens, groups, D).
        self._keys, self._values = (
            t.view(size)[:, order].permute(1, 2, 0, 3).contiguous() for t in (keys, values)
        )

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """One decode per stream: query (streams, ranks, groups, D), result of the same shape."""
        keys, values = (
            pool[self._tables].flatten(1, 2).transpose(1, 2) for pool in (self._keys, self._values)
        )  # (streams, groups, context, D)
        folded = query.transpose(1, 2)  # (streams, groups, ranks, D)
        return F.scaled_dot_product_attention(folded, keys, values).transpose(1, 2)
