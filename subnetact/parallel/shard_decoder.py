"""`ShardDecoder`: the blocks of one stage, and one shard of their keys and values.

Every shard of a stage computes the same linear layers of the same rows; attention is over what the
shard holds, and made whole with one gather per layer of outputs and log-sum-exps. The width may
change from iteration to iteration as on one device: keys and values do not depend on it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F

from subnetact.decoding.decoder_weights import DecoderWeights, Layer, SkippedLayer
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
        self.weights = DecoderWeights(checkpoint, subnet_ids, packing, device=device)
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
        config, layers = self.config, self.weights.subnets[subnet_id]
        positions = self._indices(batch.positions)
        angles = rotary_angles(positions, config.head_dim, config.rope_theta)
        plans: dict[int, list[ReadPlan]] = {}  # by the query heads per group
        width = (x.shape[-1],)
        for own, i in enumerate(self._blocks):
            layer = layers[i]
            y = F.rms_norm(x, width, layer.norm1, config.norm_eps)
            if isinstance(layer, SkippedLayer):
                self._write_fresh(own, self._keys_values(layer, y, angles), batch.chunks)
                continue
            ranks = layer.heads.ranks
            if ranks not in plans:
                plans[ranks] = [plan_reads(c.reads, c.rows, ranks, x) for c in batch.chunks]
            query, key, value = self._project(layer, y, angles)
            mixed = self._attend(own, query, (key, value), batch.chunks, plans[ranks], peers)
            x = x + layer.heads.proj(mixed.flatten(1))
            x = x + layer.feed_forward(F.rms_norm(x, width, layer.norm2, config.norm_eps))
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
        rows = layer.heads.q_kv(y).unflatten(1, (-1, groups, head_dim))  # (T, ranks + 2, ...)
        query, key, value = rows[:, :-2], rows[:, -2], rows[:, -1]
        if layer.q_norm is not None:
            query = F.rms_norm(query, (head_dim,), layer.q_norm, config.norm_eps)
            key = F.rms_norm(key, (head_dim,), layer.k_norm, config.norm_eps)
        query = rotate(query, cos[:, None, None], sin[:, None, None])
        return query, rotate(key, cos[:, None], sin[:, None]), value

    def _keys_values(
        self, layer: SkippedLayer, y: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (T, groups, D) that a block would have made of rows that pass it by."""
        config, (cos, sin) = self.config, angles
        rows = layer.kv(y).unflatten(1, (2, config.num_kv_heads, config.head_dim))
        key, value = rows.unbind(1)
        if layer.k_norm is not None:
            key = F.rms_norm(key, (config.head_dim,), layer.k_norm, config.norm_eps)
        return rotate(key, cos[:, None], sin[:, None]), value

    def _write_fresh(
        self, own: int, fresh: tuple[torch.Tensor, torch.Tensor], chunks: tuple[ChunkRows, ...]
    ) -> None:
        """Write this shard's part of the keys and values of an iteration."""
        for first, _, reads in chunks:
            for row, run in reads.fresh:
                rows = slice(first + row, first + row + run.length)
                slots = torch.arange(run.begin, run.begin + run.length, device=self._device)
                self._cache.write(own, slots, fresh[0][rows], fresh[1][rows])

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
        self._write_fresh(own, fresh, chunks)
        head_dim = query.shape[-1]
        # Outputs and log-sum-exps beside each other: one gather carries both.
        part = query.new_empty(*query.shape[:-1], head_dim + 1)
        for (first, count, reads), plan in zip(chunks, plans, strict=True):
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
