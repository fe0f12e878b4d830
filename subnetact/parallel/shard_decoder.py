"""`ShardDecoder`: the blocks of one stage, and one shard of their keys and values.

Attention is over what the shard holds, and made whole with one gather per block of outputs and
log-sum-exps. Where a gather is quick the shards of a stage share out the feed-forwards as well, by
hidden units, whose outputs add up (tensor parallelism: Shoeybi et al., Megatron-LM, 2019; beside
KV-cache parallelism: Helix, arXiv 2507.07120); all else each computes, of the same rows. Of the
head each has a piece of the vocabulary. The width may change from iteration to iteration as on one
device: keys and values do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional as F

from subnetact.decoding.decoder_weights import CutLayer, DecoderWeights, Layer, SkippedLayer
from subnetact.decoding.extents import Run
from subnetact.decoding.kv_cache import CacheShape, KVCache
from subnetact.decoding.projection import project, project_passing
from subnetact.decoding.rotary import signed_sine
from subnetact.parallel.messages import ChunkRows, MicroBatch
from subnetact.parallel.partial_attention import merge_parts
from subnetact.parallel.shard_attention import ShardAttention
from supernet.checkpoint import Checkpoint
from supernet.layers.causal import Angles, rotary_angles


class ShardPeers(Protocol):
    """The other shards of a stage."""

    @property
    def share_layers(self) -> bool: ...
    def gather(self, part: torch.Tensor) -> torch.Tensor: ...


class _StageRows(NamedTuple):
    """Of one micro-batch: its rows' angles (T, 1, D), what it writes and attends to here.

    `rows` are written, into `slots`; None: all of them.
    """

    angles: Angles
    rows: torch.Tensor | None
    slots: torch.Tensor
    attention: dict[int, ShardAttention]  # by the query heads per group


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
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        """Hold nothing, as one of a stage's `shards`.

        Raises ValueError for a checkpoint of no decoder, or another packing.
        """
        self.weights = DecoderWeights(checkpoint, subnet_ids, packing, device=device, pieces=shards)
        self._device = torch.device(device)
        self.config = self.weights.config
        self._blocks, self._shard = blocks, shard
        shape = CacheShape(len(blocks), self.config.num_kv_heads, self.config.head_dim)
        self._cache = KVCache(shape, capacity_tokens, block_tokens=block_tokens, device=device)
        positions = torch.arange(self.config.max_positions, device=device)
        self._cos, sin = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        self._sin = signed_sine(sin)

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
        config, width = self.config, (x.shape[-1],)
        layers = self.weights.subnets[subnet_id][self._blocks.start : self._blocks.stop]
        reads = self._reads(batch, layers)
        for own, layer in enumerate(layers):
            y = torch.rms_norm(x, width, layer.norm1, config.norm_eps)
            if isinstance(layer, SkippedLayer):
                self._write(own, reads, *project_passing(config, layer, y, reads.angles))
                continue
            query, key, value = project(config, layer, y, reads.angles)
            self._write(own, reads, key, value)
            mixed = self._attend(own, query, reads.attention[layer.heads.ranks], peers)
            x = x + layer.heads.proj(mixed.flatten(1))
            y = torch.rms_norm(x, width, layer.norm2, config.norm_eps)
            x = x + self._feed_forward(layer, y, peers)
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor, batch: MicroBatch, *, is_alone: bool) -> torch.Tensor | None:
        """Return logits (S, vocabulary) of the rows that sample: all of them where `is_alone`.

        Else those of this shard's piece of the vocabulary; None where the first has them all.
        """
        weights, head = self.weights, self.weights.head
        if not is_alone and isinstance(head, CutLayer):
            head = head.pieces[self._shard]
        elif not is_alone and self._shard > 0:
            return None
        rows = x[self._indices(batch.sampled)]
        return head(torch.rms_norm(rows, (x.shape[-1],), weights.norm, self.config.norm_eps))

    def fill(self, runs: tuple[Run, ...], seed: int) -> None:
        """Write random keys and values (`KVCache.fill`)."""
        slots = [torch.arange(run.begin, run.begin + run.length) for run in runs]
        if slots:
            self._cache.fill(torch.cat(slots).to(self._device), seed)

    def _indices(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)

    def _reads(self, batch: MicroBatch, layers: Sequence[Layer | SkippedLayer]) -> _StageRows:
        """Plan, for all layers alike, where rows go and what they attend to."""
        positions = self._indices(batch.positions)
        rows, slots = _written(batch.chunks)
        kinds = {layer.heads.ranks for layer in layers if isinstance(layer, Layer)}
        return _StageRows(
            (self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)),
            None if rows == list(range(len(batch.ids))) else self._indices(rows),
            self._indices(slots),
            {ranks: ShardAttention(batch.chunks, self._cache, ranks) for ranks in kinds},
        )

    def _write(self, own: int, reads: _StageRows, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write this shard's part of the keys and values (T, groups, D) of an iteration."""
        if not len(reads.slots):
            return
        if reads.rows is not None:
            keys, values = keys[reads.rows], values[reads.rows]
        self._cache.write(own, reads.slots, keys, values)

    def _attend(
        self, own: int, query: torch.Tensor, here: ShardAttention, peers: ShardPeers | None
    ) -> torch.Tensor:
        """Return attention (T, ranks, groups, D) over all shards."""
        if peers is None:
            return here.whole(query, own)
        parts = peers.gather(here.part(query, own))
        return merge_parts(parts[..., :-1], parts[..., -1])

    def _feed_forward(
        self, layer: Layer, y: torch.Tensor, peers: ShardPeers | None
    ) -> torch.Tensor:
        """Return a block's feed-forward of rows (T, C), in which all shards take part."""
        form = layer.feed_forward
        if peers is None or not peers.share_layers or not isinstance(form, CutLayer):
            return form(y)
        return peers.gather(form.pieces[self._shard](y)).sum(0)


def _written(chunks: Sequence[ChunkRows]) -> tuple[list[int], list[int]]:
    """The rows whose keys and values this shard keeps, and the slots that they go into."""
    rows: list[int] = []
    slots: list[int] = []
    for first, _, reads in chunks:
        for row, run in reads.fresh:
            rows += range(first + row, first + row + run.length)
            slots += range(run.begin, run.begin + run.length)
    return rows, slots
