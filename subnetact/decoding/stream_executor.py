"""`StreamExecutor`: one iteration of many streams on one decoder, on the subnet that is asked for.

An iteration runs decodes and parts of prompts of any length in one pass. Linear layers see all its
rows at once, attention goes sequence by sequence over views of its slabs, logits are computed only
for the rows that sample. A block that the subnet leaves out only writes keys and values. The twin
is the plain network on the whole context (`supernet/families/decoder.py`); tests hold the two equal
for any split into iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from subnetact.decoding.attention import (
    Slab,
    attend,
    first_visible,
    has_log_sum_exp,
    plan_slabs,
)
from subnetact.decoding.decode_attention import Decode, DecodeAttention
from subnetact.decoding.decoder_weights import DecoderWeights, Layer, SkippedLayer
from subnetact.decoding.extents import CacheFullError, Run, SequenceId
from subnetact.decoding.kv_cache import CacheShape, KVCache
from subnetact.decoding.prefix_index import KeptPrefix, PrefixIndex
from subnetact.decoding.projection import project, project_passing
from subnetact.decoding.ragged_batch import Chunk, RaggedBatch
from subnetact.decoding.rotary import signed_sine
from subnetact.threads import ThreadCount
from supernet.arch import Arch
from supernet.checkpoint import Checkpoint
from supernet.layers.causal import Angles, rotary_angles

Layers = Sequence[Layer | SkippedLayer]


class _AttentionPlan(NamedTuple):
    """What the rows of an iteration attend to, in layers of one number of heads and one window."""

    decodes: DecodeAttention
    chunks: list[tuple[slice, list[Slab]]]


class _Reads(NamedTuple):
    """Of one iteration: slots (T,) of its rows, their angles (T, 1, D), what they attend to."""

    slots: torch.Tensor
    angles: Angles
    plans: dict[tuple[int, int], _AttentionPlan]  # by query heads per group, and window


class StreamExecutor:
    """Runs iterations; holds the keys and values of all streams until they are released."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        capacity_tokens: int = 4096,
        block_tokens: int = 64,
        threads: int | None = 1,
        subnet_ids: Iterable[str] | None = None,
        packing: str = "views",
        keep_prefixes: bool = False,
    ):
        """Make the listed subnets (default: those that are served) runnable on the CPU.

        `capacity_tokens` is how many tokens of all streams are kept, in blocks of `block_tokens`.
        With `keep_prefixes` beginnings of texts stay for others that begin alike, until their
        memory is needed (`find_prefix`).
        Raises ValueError for a checkpoint of no decoder, or a packing that is not to be had.
        """
        self._definition = checkpoint.definition
        self.weights = self._load_weights(checkpoint, subnet_ids, packing)
        config = self.weights.config
        self._config = config
        shape = CacheShape(config.depth, config.num_kv_heads, config.head_dim)
        self.cache = self._make_cache(shape, capacity_tokens, block_tokens)
        self.packing, self.threads = packing, threads
        self._qualities = {subnet.subnet_id: subnet.accuracy for subnet in checkpoint.subnets}
        self._prefixes = PrefixIndex(self.cache.table) if keep_prefixes else None
        self._thread_count = ThreadCount(threads)
        positions = torch.arange(config.max_positions)
        self._cos, sin = rotary_angles(positions, config.head_dim, config.rope_theta)
        self._sin = signed_sine(sin)

    @property
    def max_positions(self) -> int:
        """The longest context, in tokens."""
        return self._config.max_positions

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can run."""
        return tuple(self.weights.subnets)

    @property
    def device(self) -> torch.device:
        """Where iterations are computed."""
        return self.cache.keys.device

    @property
    def dtype(self) -> str:
        """What is computed in and cached, such as `float32`; of `packing` int8 its outputs."""
        return str(self.cache.keys.dtype).removeprefix("torch.")

    def warm_up(self) -> int:
        """Capture what is replayed later, and return how many calls that are: none on a CPU."""
        return 0

    def add(self, arch: Arch, precision: str = "fp32") -> str:
        """Make another subnet of the space runnable; return its id. Raises as `DecoderWeights`."""
        return self.weights.add(self._definition, arch, precision)

    def missing_tokens(self, chunks: Sequence[Chunk]) -> int:
        """How many free tokens (whole blocks) of the cache an iteration takes."""
        table = self.cache.table
        return sum(table.missing_tokens(chunk.sequence, len(chunk.ids)) for chunk in chunks)

    @torch.inference_mode()
    def run(self, subnet_id: str, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Run one iteration; return logits (S, vocabulary) of the chunks that sample, in order.

        Raises CacheFullError when the cache has no room for it, ValueError for chunks that can't be
        (`RaggedBatch.of`), KeyError for a subnet that is not runnable; then nothing was changed.
        """
        if subnet_id not in self.weights.subnets:
            raise KeyError(subnet_id)
        self._thread_count.use()
        table, config = self.cache.table, self._config
        batch = RaggedBatch.of(
            chunks,
            [table.length(chunk.sequence) for chunk in chunks],
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
        )
        missing = self.missing_tokens(chunks)
        if self._prefixes is not None:
            self._prefixes.make_room(missing)
        if missing > table.free_tokens:
            raise CacheFullError(
                f"the iteration needs {missing} more tokens of cache, {table.free_tokens} of "
                f"{table.capacity_tokens} are free"
            )
        taken = [run for c in chunks for run in table.reserve(c.sequence, len(c.ids))]
        if taken:
            self._prepare(taken)
        logits = self._forward(batch, subnet_id)
        for chunk, start in zip(chunks, batch.starts, strict=True):
            table.advance(chunk.sequence, len(chunk.ids))
            if self._prefixes is not None:
                self._prefixes.wrote(chunk.sequence, start, chunk.ids, self.quality(subnet_id))
        return logits

    def quality(self, subnet_id: str) -> float:
        """Return the quality of a width as the checkpoint says; 0 of one that was added."""
        return self._qualities.get(subnet_id, 0.0)

    def find_prefix(self, ids: Sequence[int], least_quality: float) -> KeptPrefix | None:
        """Return the longest beginning of a text that is kept, written at `least_quality` or above.

        None also where beginnings are not kept.
        """
        return None if self._prefixes is None else self._prefixes.find(ids, least_quality)

    def begin(self, sequence: SequenceId, prefix: KeptPrefix) -> None:
        """Begin a stream with what `find_prefix` returned just before; nothing is computed."""
        assert self._prefixes is not None, "only an index finds prefixes"
        self._prefixes.begin(sequence, prefix)

    def share(self, source: SequenceId, sequence: SequenceId, tokens: int) -> None:
        """Begin a stream with the first `tokens` of one that is cached. Raises as the table."""
        self.cache.table.share(source, sequence, tokens)

    def release(self, sequence: SequenceId) -> None:
        """Forget a stream: it has ended, was aborted, or will be computed again."""
        if self._prefixes is not None:
            self._prefixes.end(sequence)
        self.cache.table.release(sequence)

    def look_after(self) -> tuple[()]:
        """Return the sequences that were lost: none ever are."""
        return ()

    def wait_until_whole(self) -> bool:
        """Return whether there was anything to wait for: never."""
        return False

    def close(self) -> None:
        """End nothing: it is all in this process."""

    def _load_weights(
        self, checkpoint: Checkpoint, subnet_ids: Iterable[str] | None, packing: str
    ) -> DecoderWeights:
        return DecoderWeights(checkpoint, subnet_ids, packing)

    def _make_cache(self, shape: CacheShape, capacity_tokens: int, block_tokens: int) -> KVCache:
        return KVCache(shape, capacity_tokens, block_tokens=block_tokens)

    def _prepare(self, taken: Sequence[Run]) -> None:
        """Ready slots for who takes them: nothing, since slabs are read as far as written."""

    def _forward(self, batch: RaggedBatch, subnet_id: str) -> torch.Tensor:
        weights, eps = self.weights, self._config.norm_eps
        layers = weights.subnets[subnet_id]
        reads = self._reads(batch, layers)
        x = F.embedding(batch.ids, weights.embedding)
        width = (x.shape[-1],)
        for i, layer in enumerate(layers):
            y = torch.rms_norm(x, width, layer.norm1, eps)
            if isinstance(layer, SkippedLayer):
                self._write_passing(i, layer, y, reads.slots, reads.angles)
                continue
            x = x + self._attention(i, layer, y, reads)
            x = x + layer.feed_forward(torch.rms_norm(x, width, layer.norm2, eps))
        sampled = torch.rms_norm(x[batch.sampled_rows], width, weights.norm, eps)
        return weights.head(sampled)

    def _attention(self, i: int, layer: Layer, y: torch.Tensor, reads: _Reads) -> torch.Tensor:
        query, key, value = project(self._config, layer, y, reads.angles)
        self.cache.write(i, reads.slots, key, value)
        heads = layer.heads
        plan = reads.plans[heads.ranks, self._config.window(i)]
        if not plan.chunks:
            return heads.proj(plan.decodes.attend(query, i).flatten(1))
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        plan.decodes.into(mixed, query, i)
        for rows, slabs in plan.chunks:
            views = [self.cache.view(i, slab.run) for slab in slabs]
            mixed[rows] = attend(query[rows], slabs, views)
        return heads.proj(mixed.flatten(1))

    def _write_passing(
        self, i: int, layer: SkippedLayer, y: torch.Tensor, slots: torch.Tensor, angles: Angles
    ) -> None:
        """Write the keys and values that a block would have made of rows that pass it by."""
        self.cache.write(i, slots, *project_passing(self._config, layer, y, angles))

    def _reads(self, batch: RaggedBatch, layers: Layers) -> _Reads:
        """Plan, for all layers alike, where the batch's rows go and what they attend to."""
        table = self.cache.table
        slots: list[int] = []
        for chunk, start in zip(batch.chunks, batch.starts, strict=True):
            for run in table.slots(chunk.sequence, start, start + len(chunk.ids)):
                slots += range(run.begin, run.begin + run.length)
        kinds = {
            (layer.heads.ranks, self._config.window(i))
            for i, layer in enumerate(layers)
            if isinstance(layer, Layer)
        }
        return _Reads(
            torch.tensor(slots, dtype=torch.long),
            (self._cos[batch.positions].unsqueeze(1), self._sin[batch.positions].unsqueeze(1)),
            {kind: self._read_plan(batch, *kind) for kind in kinds},
        )

    def _read_plan(self, batch: RaggedBatch, ranks: int, window: int) -> _AttentionPlan:
        table, cache = self.cache.table, self.cache
        decodes: list[Decode] = []
        chunks: list[tuple[slice, list[Slab]]] = []
        first = 0
        for chunk, start in zip(batch.chunks, batch.starts, strict=True):
            count = len(chunk.ids)
            runs = table.slots(chunk.sequence, first_visible(start, window), start + count)
            if count == 1 and has_log_sum_exp():
                decodes.append(Decode(first, runs))
            else:
                plan = plan_slabs(runs, start, count, ranks, window=window)
                chunks.append((slice(first, first + count), plan))
            first += count
        return _AttentionPlan(DecodeAttention(decodes, cache.keys, cache.values), chunks)
