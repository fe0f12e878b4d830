"""`ShardDecoder`: the blocks of one stage, and one shard of their keys and values.

Every shard of a stage computes the same linear layers of the same rows; attention is over what the
shard holds, and made whole with one gather per layer of outputs and log-sum-exps. The width may
change from iteration to iteration as on one device: keys and values do not depend on it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F

from subnetact.decoding.decoder_weights import DecoderWeights, Layer
from subnetact.decoding.extents import Run
from subnetact.decoding.kv_cache import CacheShape, KVCache
from subnetact.parallel.messages import ChunkRows, MicroBatch
from subnetact.parallel.partial_attention import ReadPlan, attend_part, merge_parts, plan_reads
from supernet.checkpoint import Checkpoint
from supernet.layers.causal import Angles, rotary_angles, rotate


class ShardPeers(Protocol):
    """The other shards of a stage."""

    def gather(self, part: torch.Tensor) -> torch.Tensor: ...


class ShardDecoder:
    """Runs micro-batches through its blocks; knows slots, and no stream."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        blocks: range,
        *,
        capacity_tokens: int,
        block_tokens: int,
        packing: str = "views",
        subnet_ids: tuple[str, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Hold nothing. Raises ValueError for a checkpoint of no decoder, or another packing."""
        self.weights = DecoderWeights(checkpoint, subnet_ids, packing, device)
        self._device = torch.device(device)
        self.config = self.weights.config
        self._blocks = blocks
        shape = CacheShape(len(blocks), self.config.num_kv_heads, self.config.head_dim)
        self._cache = KVCache(shape, capacity_tokens, block_tokens=block_tokens, device=device)

    @property
    def is_first(self) -> bool:
        """Whether its micro-batches begin with token ids."""
        return self._blocks.start == 0

    @property
    def is_last(self) -> bool:
        """Whether its micro-batches end in logits."""
        return self._blocks.stop == self.config.depth

    @torch.inference_mode()
    def embed(self, batch: MicroBatch) -> torch.Tensor:
        """Return the rows (T, C) that the first block reads."""
        return F.embedding(self._indices(batch.ids), self.weights.embedding)

    @torch.inference_mode()
    def run(
        self, subnet_id: str, batch: MicroBatch, x: torch.Tensor, peers: ShardPeers | None
    ) -> torch.Tensor:
        """Run rows (T, C) through the blocks; `peers` None: this shard has all that they read."""
        config, weights = self.config, self.weights
        positions = self._indices(batch.positions)
        angles = rotary_angles(positions, config.head_dim, config.rope_theta)
        ranks = config.num_heads // config.num_kv_heads
        plans = [plan_reads(c.reads, c.rows, ranks, x) for c in batch.chunks]
        width = (x.shape[-1],)
        for own, i in enumerate(self._blocks):
            layer, feed_forward = weights.layers[i], weights.feed_forwards[subnet_id][i]
            y = F.rms_norm(x, width, layer.norm1, config.norm_eps)
            query, key, value = self._project(layer, y, angles)
            mixed = self._attend(own, query, (key, value), batch.chunks, plans, peers)
            x = x + layer.proj(mixed.flatten(1))
            x = x + feed_forward(F.rms_norm(x, width, layer.norm2, config.norm_eps))
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return logits (S, vocabulary) of the rows that sample."""
        weights = self.weights
        rows = x[self._indices(batch.sampled)]
        return weights.head(F.rms_norm(rows, (x.shape[-1],), weights.norm, self.config.norm_eps))

    def fill(self, runs: tuple[Run, ...], seed: int) -> None:
        """Write random keys and values (`KVCache.fill`)."""
        slots = [torch.arange(run.begin, run.begin + run.length) for run in runs]
        if slots:
            self._cache.fill(torch.cat(slots).to(self._device), seed)

    def _indices(self, numbers: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)

    def _project(
        self, layer: Layer, y: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (T, ranks, groups, D), keys and values (T, groups, D), turned by position."""
        config = self.config
        groups, head_dim = config.num_kv_heads, config.head_dim
        cos, sin = angles
        query, kv = layer.q_kv(y)
        query = query.unflatten(1, (-1, groups, head_dim))
        key, value = kv.unflatten(1, (2, groups, head_dim)).unbind(1)
        if layer.q_norm is not None:
            query = F.rms_norm(query, (head_dim,), layer.q_norm, config.norm_eps)
            key = F.rms_norm(key, (head_dim,), layer.k_norm, config.norm_eps)
        query = rotate(query, cos[:, None, None], sin[:, None, None])
        return query, rotate(key, cos[:, None], sin[:, None]), value

    def _attend(
        self,
        own: int,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        chunks: tuple[ChunkRows, ...],
        plans: list[ReadPlan],
        peers: ShardPeers | None,
    ) -> torch.Tensor:
        """Write this shard's part of fresh keys and values; return attention over all shards."""
        head_dim = query.shape[-1]
        # Outputs and log-sum-exps beside each other: one gather carries both.
        part = query.new_empty(*query.shape[:-1], head_dim + 1)
        for (first, count, reads), plan in zip(chunks, plans, strict=True):
            for row, run in reads.fresh:
                rows = slice(first + row, first + row + run.length)
                slots = torch.arange(run.begin, run.begin + run.length, device=query.device)
                self._cache.write(own, slots, fresh[0][rows], fresh[1][rows])
            runs = (*reads.past, *(run for _, run in reads.fresh))
            views = [self._cache.view(own, run) for run in runs]
            rows = slice(first, first + count)
            part[rows, ..., :head_dim], part[rows, ..., head_dim] = attend_part(
                query[rows], plan, views
            )
        if peers is None:
            return part[..., :head_dim]
        parts = peers.gather(part)
        return merge_parts(parts[..., :head_dim], parts[..., head_dim])
