"""`CudaStreamExecutor`: iterations of a decoder on a CUDA device, decodes by captured graphs.

The interface and the rules of `StreamExecutor`; other tensors. Keys and values lie in pages of 16
tokens, which attention gathers: on a GPU a gather costs little, and one call for all streams is
what counts. Pages are gathered whole, so they are cleared before a stream has them. An iteration of
decodes alone is one graph per (subnet, number of decodes, longest context), padded to the next
larger of each; one with parts of prompts runs eagerly. Padded rows write and read a page that no
stream has. The twin is the plain network on the whole context.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_graphs import Captured, CudaGraphs, GraphKey, GraphStatus
from subnetact.decoding.decoder_weights import DecoderWeights, Layer
from subnetact.decoding.extents import Run
from subnetact.decoding.gathered_attention import attend_gathered, page_slots, visible_positions
from subnetact.decoding.kv_cache import CacheShape, KVCache
from subnetact.decoding.projection import project
from subnetact.decoding.ragged_batch import RaggedBatch
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.ieee_float32 import ieee_float32
from supernet.checkpoint import Checkpoint

_ROW = 3  # numbers of a decode before its pages: token, position, slot that it writes


class _Asking(NamedTuple):
    """Rows that attend alike: their slice, `reads` (b, M), their positions (b, c); b * c rows."""

    rows: slice | torch.Tensor
    reads: torch.Tensor
    positions: torch.Tensor


class _Buffers(NamedTuple):
    """What a graph reads and writes: (n, 3 + pages) integers and (n, vocabulary) logits."""

    staging: torch.Tensor
    given: torch.Tensor
    logits: torch.Tensor
    answer: torch.Tensor


class CudaStreamExecutor(StreamExecutor):
    """See the module. Used by one thread, which has the device's compute lane while it runs."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        accelerator: Accelerator,
        *,
        capacity_tokens: int = 65_536,
        page_tokens: int = 16,
        dtype: torch.dtype = torch.float32,
        subnet_ids: Iterable[str] | None = None,
        decode_counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
        graph_contexts: Sequence[int] = (512, 2048),
        graph_budget_bytes: int | None = None,
        keep_prefixes: bool = False,
    ):
        """Put weights and an empty cache on the device; `warm_up` captures.

        Graphs are of `decode_counts` streams with at most `graph_contexts` tokens each, within
        `graph_budget_bytes` (None: no limit, 0: none); other iterations run eagerly. Raises as
        `StreamExecutor`, and ValueError for a count or context below 1.
        """
        if min((1, *decode_counts, *graph_contexts)) < 1:
            raise ValueError(
                f"decode_counts are {list(decode_counts)}, graph_contexts {list(graph_contexts)}; "
                "allowed 1 or more each"
            )
        self._accelerator, self._dtype = accelerator, dtype
        self._page_tokens = page_tokens
        with accelerator.computing():  # what it reads is allocated, and filled, on its lane
            super().__init__(
                checkpoint,
                capacity_tokens=capacity_tokens,
                block_tokens=page_tokens,
                threads=None,
                subnet_ids=subnet_ids,
                keep_prefixes=keep_prefixes,
            )
            device = accelerator.device
            self._cos, self._sin = (t.to(device, dtype) for t in (self._cos, self._sin))
        self._spare_page = self.cache.table.capacity_tokens // page_tokens
        self._counts = tuple(sorted(set(decode_counts)))
        pages = (-(-context // page_tokens) for context in graph_contexts)
        self._page_counts = tuple(sorted(set(pages)))
        self._buffers: dict[tuple[int, int], _Buffers] = {}
        self._graphs = CudaGraphs(self, graph_budget_bytes)

    @property
    def graph_status(self) -> GraphStatus:
        """What is captured, how often it was replayed, and why not."""
        return self._graphs.status

    def warm_up(self) -> int:
        """Capture every subnet at every number of decodes and context; return how many there are.

        Takes seconds. Afterwards a decode iteration is one replay.
        """
        return self._graphs.capture(
            GraphKey(_graph_name(subnet_id, pages), count)
            for subnet_id in self.subnet_ids
            for pages in self._page_counts
            for count in self._counts
        )

    def measure(self, key: GraphKey) -> int:
        """See `Capturer`."""
        with self._accelerator.searching():
            return self._accelerator.peak_bytes(lambda: self._replayed(key))

    def capture(self, key: GraphKey) -> Captured:
        """See `Capturer`."""
        graph, num_bytes = self._accelerator.capture(lambda: self._replayed(key))
        return Captured(graph, _NothingPinned(), num_bytes)

    def renew_pool(self) -> None:
        """See `Capturer`."""
        self._accelerator.renew_pool()

    def drop(self) -> None:
        """See `Capturer`."""
        self._accelerator.drop_captures()

    def close(self) -> None:
        """Free the graphs; the device must be idle."""
        self._graphs.drop()

    def _load_weights(
        self, checkpoint: Checkpoint, subnet_ids: Iterable[str] | None, packing: str
    ) -> DecoderWeights:
        device = self._accelerator.device
        return DecoderWeights(checkpoint, subnet_ids, packing, device=device, dtype=self._dtype)

    def _make_cache(self, shape: CacheShape, capacity_tokens: int, block_tokens: int) -> KVCache:
        return KVCache(
            shape,
            capacity_tokens,
            block_tokens=block_tokens,
            dtype=self._dtype,
            device=self._accelerator.device,
            spare_slots=block_tokens,
        )

    def _prepare(self, taken: Sequence[Run]) -> None:
        """Clear slots: what is masked is read too and counts 0 times, which of NaN is NaN.

        So one stream whose numbers went wrong would make those wrong that have its pages next.
        """
        with self._accelerator.computing():
            self.cache.clear(taken)

    def _forward(self, batch: RaggedBatch, subnet_id: str) -> torch.Tensor:
        """Logits (S, vocabulary) float32, on the host; then the iteration is over."""
        with self._accelerator.computing():
            if all(len(chunk.ids) == 1 for chunk in batch.chunks):
                logits = self._replay(batch, subnet_id)
                if logits is not None:
                    return logits[batch.sampled_rows]
            with ieee_float32():
                logits = self._eager(batch, subnet_id).float().cpu()
            self._accelerator.mark().wait()  # where no row samples, nothing was copied
            return logits

    # --- decodes alone -------------------------------------------------------------------------

    def _replay(self, batch: RaggedBatch, subnet_id: str) -> torch.Tensor | None:
        """Logits of all rows by a graph; None where there is none that takes them."""
        needed = max(start // self._page_tokens + 1 for start in batch.starts)
        pages = next((pages for pages in self._page_counts if pages >= needed), None)
        if pages is None:
            return None
        lease = self._graphs.lease(_graph_name(subnet_id, pages), len(batch))
        if lease is None:
            return None
        with lease:
            buffers = self._buffers[lease.key.batch_size, pages]
            self._stage(batch, buffers.staging)
            self._accelerator.copy(buffers.given, buffers.staging)
            lease.graph.replay()
            self._accelerator.copy(buffers.answer, buffers.logits)
            self._accelerator.mark().wait()
        return buffers.answer[: len(batch)].clone()

    def _stage(self, batch: RaggedBatch, staging: torch.Tensor) -> None:
        """Write the decodes into (n, 3 + pages); rows beyond them compute something harmless."""
        staging.zero_()
        staging[:, _ROW:] = self._spare_page
        staging[:, 2] = self._spare_page * self._page_tokens
        for row, (chunk, start) in enumerate(zip(batch.chunks, batch.starts, strict=True)):
            pages = self._pages(chunk.sequence, start + 1)
            slot = pages[-1] * self._page_tokens + start % self._page_tokens
            staging[row, : _ROW + len(pages)] = torch.tensor([*chunk.ids, start, slot, *pages])

    def _replayed(self, key: GraphKey) -> None:
        """What a graph does: from what was given to logits, in place."""
        subnet_id, pages = _parts_of(key.subnet_id)
        buffers = self._buffers_of(key.batch_size, pages)
        given = buffers.given
        reads = page_slots(given[:, _ROW:], self._page_tokens)
        asking = [_Asking(slice(None), reads, given[:, 1:2])]
        with ieee_float32():
            x = self._rows(given[:, 0], given[:, 1], given[:, 2], asking, subnet_id)
            buffers.logits.copy_(self._logits(x))

    def _buffers_of(self, count: int, pages: int) -> _Buffers:
        if (count, pages) not in self._buffers:
            shape = (count, _ROW + pages)
            answer = (count, self._config.vocab_size)
            device = self._accelerator.device
            buffers = _Buffers(
                self._accelerator.pinned(shape, torch.long),
                torch.zeros(shape, dtype=torch.long, device=device),
                torch.zeros(answer, dtype=torch.float32, device=device),
                self._accelerator.pinned(answer, torch.float32),
            )
            buffers.given[:, _ROW:] = self._spare_page  # what a capture runs on
            buffers.given[:, 2] = self._spare_page * self._page_tokens
            self._buffers[count, pages] = buffers
        return self._buffers[count, pages]

    # --- any iteration -------------------------------------------------------------------------

    def _eager(self, batch: RaggedBatch, subnet_id: str) -> torch.Tensor:
        """Logits of the rows that sample, on the device."""
        device, table = self._accelerator.device, self.cache.table
        slots: list[int] = []
        for chunk, start in zip(batch.chunks, batch.starts, strict=True):
            for run in table.slots(chunk.sequence, start, start + len(chunk.ids)):
                slots += range(run.begin, run.begin + run.length)
        ids, positions, written = (
            t.to(device) for t in (batch.ids, batch.positions, torch.tensor(slots))
        )
        x = self._rows(ids, positions, written, self._asking(batch), subnet_id)
        return self._logits(x[batch.sampled_rows.to(device)])

    def _asking(self, batch: RaggedBatch) -> list[_Asking]:
        """Decodes together, padded to the longest; parts of prompts one by one."""
        device = self._accelerator.device
        asking: list[_Asking] = []
        decodes: list[tuple[int, int, list[int]]] = []
        first = 0
        for chunk, start in zip(batch.chunks, batch.starts, strict=True):
            count = len(chunk.ids)
            pages = self._pages(chunk.sequence, start + count)
            if count == 1:
                decodes.append((first, start, pages))
            else:
                reads = page_slots(torch.tensor([pages], device=device), self._page_tokens)
                positions = torch.arange(start, start + count, device=device)[None]
                asking.append(_Asking(slice(first, first + count), reads, positions))
            first += count
        if decodes:
            longest = max(len(pages) for _, _, pages in decodes)
            padded = [pages + [self._spare_page] * (longest - len(pages)) for *_, pages in decodes]
            rows, starts = ([each[i] for each in decodes] for i in (0, 1))
            reads = page_slots(torch.tensor(padded, device=device), self._page_tokens)
            positions = torch.tensor(starts, device=device)[:, None]
            asking.append(_Asking(torch.tensor(rows, device=device), reads, positions))
        return asking

    def _rows(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        asking: Sequence[_Asking],
        subnet_id: str,
    ) -> torch.Tensor:
        """Run rows (T,) through the layers of a subnet; (T, C) before the last norm."""
        config, weights = self._config, self.weights
        x = F.embedding(ids, weights.embedding)
        width, eps = (config.width,), config.norm_eps
        angles = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        visible = {
            window: [visible_positions(e.positions, e.reads.shape[1], window) for e in asking]
            for window in {config.window(i) for i in range(config.depth)}
        }
        for i, layer in enumerate(weights.subnets[subnet_id]):
            y = torch.rms_norm(x, width, layer.norm1, eps)
            if not isinstance(layer, Layer):
                self._write_passing(i, layer, y, slots, angles)
                continue
            query, key, value = project(config, layer, y, angles)
            self.cache.write(i, slots, key, value)
            mixed = self._attend(i, query, asking, visible[config.window(i)])
            x = x + layer.heads.proj(mixed.flatten(1))
            x = x + layer.feed_forward(torch.rms_norm(x, width, layer.norm2, eps))
        return x

    def _attend(
        self,
        i: int,
        query: torch.Tensor,
        asking: Sequence[_Asking],
        visible: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        keys, values = self.cache.layer(i)
        parts = [
            attend_gathered(query[each.rows], keys, values, each.reads, seen)
            for each, seen in zip(asking, visible, strict=True)
        ]
        if len(asking) == 1 and len(parts[0]) == len(query):
            return parts[0]
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        for each, part in zip(asking, parts, strict=True):
            mixed[each.rows] = part
        return mixed

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        config, weights = self._config, self.weights
        return weights.head(torch.rms_norm(x, (config.width,), weights.norm, config.norm_eps))

    def _pages(self, sequence: int | str, length: int) -> list[int]:
        """The pages of a sequence's first `length` tokens, in order."""
        size = self._page_tokens
        return [
            page
            for run in self.cache.table.slots(sequence, 0, length)
            for page in range(run.begin // size, -(-(run.begin + run.length) // size))
        ]


class _NothingPinned:
    """A decoder's weights are all resident: a graph keeps nothing there."""

    def reads(self) -> Hashable:
        return None

    def release(self) -> None:
        pass


def _graph_name(subnet_id: str, pages: int) -> str:
    """What a graph's key calls a subnet at a context of so many pages."""
    return f"{subnet_id}@{pages}"


def _parts_of(name: str) -> tuple[str, int]:
    subnet_id, _, pages = name.rpartition("@")
    return subnet_id, int(pages)
