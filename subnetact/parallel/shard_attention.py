"""`ShardAttention`: what the rows of a micro-batch attend to on one shard, planned once for layers.

Decodes go by the planned calls of one process (`DecodeAttention`), parts of prompts by
`attend_part`, which is the twin of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from subnetact.decoding.attention import Slab, has_log_sum_exp
from subnetact.decoding.decode_attention import Decode, DecodeAttention
from subnetact.decoding.kv_cache import KVCache
from subnetact.parallel.messages import ChunkRows
from subnetact.parallel.partial_attention import attend_part, plan_reads


class ShardAttention:
    """Attention of a micro-batch over one shard's keys and values, layer by layer."""

    def __init__(self, chunks: Sequence[ChunkRows], cache: KVCache, ranks: int) -> None:
        """Plan for blocks of `ranks` query heads per group."""
        self._cache = cache
        self._chunks: list[tuple[slice, list[Slab]]] = []
        decodes: list[Decode] = []
        is_planned = cache.keys.device.type == "cpu" and has_log_sum_exp()
        for first, count, reads in chunks:
            slabs = plan_reads(reads, count, ranks, cache.keys)
            if not slabs:
                continue  # its rows see nothing here
            if count == 1 and is_planned:
                decodes.append(Decode(first, [slab.run for slab in slabs]))
            else:
                self._chunks.append((slice(first, first + count), slabs))
        self._decodes = DecodeAttention(decodes, cache.keys, cache.values)
        rows = sum(chunk.rows for chunk in chunks)
        self._is_plain = self._decodes.is_in_order and len(decodes) == rows

    def whole(self, query: torch.Tensor, layer: int) -> torch.Tensor:
        """Return attention (T, ranks, groups, D) where this shard has all that its rows read."""
        if self._is_plain:
            return self._decodes.attend(query, layer)
        return self.part(query, layer)[..., :-1]

    def part(self, query: torch.Tensor, layer: int) -> torch.Tensor:
        """Return what this shard has of it, and beside it the log-sum-exp: (..., groups, D + 1)."""
        if self._is_plain:  # the usual case: nothing to put anywhere
            (found,) = self._decodes.parts(query, layer)
            return torch.cat((found.mixed, found.norm.unsqueeze(-1)), -1)
        part = query.new_zeros(*query.shape[:-1], query.shape[-1] + 1)
        part[..., -1] = -torch.inf
        for where, mixed, norm in self._decodes.parts(query, layer):
            part.index_copy_(0, where, torch.cat((mixed, norm.unsqueeze(-1)), -1))
        for rows, slabs in self._chunks:
            views = [self._cache.view(layer, slab.run) for slab in slabs]
            part[rows, ..., :-1], part[rows, ..., -1] = attend_part(query[rows], slabs, views)
        return part
