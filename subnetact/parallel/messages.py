"""What the executor and its workers say to each other: plain integers, and rows of logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subnetact.decoding.extents import Run
from subnetact.parallel.shard_table import ShardReads
from subnetact.parallel.worker_grid import WorkerGrid


class WorkerSpec(NamedTuple):
    """What one worker is made of: where the checkpoint lies, its place in the grid, its device.

    `meeting_place` is a folder of the executor's, which workers clear away if that was killed.
    """

    folder: str
    grid: WorkerGrid
    rank: int
    capacity_tokens: int
    block_tokens: int
    threads: int | None
    packing: str
    subnet_ids: tuple[str, ...]
    device: str
    backend: str
    meeting_place: str


class ChunkRows(NamedTuple):
    """`rows` rows of a micro-batch from `first` on, of one stream, and what they read here."""

    first: int
    rows: int
    reads: ShardReads


class MicroBatch(NamedTuple):
    """Rows that go through a stage together: ids and positions (T,), rows that sample, chunks."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    sampled: tuple[int, ...]
    chunks: tuple[ChunkRows, ...]


class Iterate(NamedTuple):
    """Run micro-batches one behind the other; `alone`: no other shard takes part."""

    subnet_id: str
    micro_batches: tuple[MicroBatch, ...]
    alone: bool


class Join(NamedTuple):
    """Form a group with all other workers, meeting in a new file of this path, in so long."""

    path: str
    within_s: float


class FillSlots(NamedTuple):
    """Write random keys and values into slots: a context that was never computed, to measure."""

    runs: tuple[Run, ...]
    seed: int


class Done(NamedTuple):
    """An order was carried out; `logits` (S, its part of the vocabulary) of the last stage."""

    logits: np.ndarray | None = None


class Failed(NamedTuple):
    """An order was not carried out, because another worker is gone, or by a bug of ours."""

    reason: str


class Loaded(NamedTuple):
    """The worker has its weights and waits for orders."""
