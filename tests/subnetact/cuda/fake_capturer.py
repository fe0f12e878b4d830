"""A `Capturer` without a device: bytes and times that a test knows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import inf

import torch

from subnetact.cuda.cuda_graphs import Captured, GraphKey

MIB = 2**20


class FakeGraph:
    def replay(self) -> None:
        raise AssertionError("bookkeeping replays nothing")


@dataclass
class FakePin:
    what: Hashable
    is_released: bool = False

    def reads(self) -> Hashable:
        return self.what

    def release(self) -> None:
        assert not self.is_released, "released twice"
        self.is_released = True


@dataclass
class FakeCapturer:
    """Intermediates of one MiB per sample, a shared pool, 64 KiB per graph.

    A pool that grows takes `block_bytes` more; samples of the subnets in `mib` take others. What
    finds too little `room` takes all that is left, and fails.
    """

    per_graph: int = 64 * 1024
    block_bytes: int = 0
    mib: dict[str, int] = field(default_factory=dict)
    faults: dict[GraphKey, Callable[[], Exception]] = field(default_factory=dict)
    captured: list[GraphKey] = field(default_factory=list)
    pins: dict[GraphKey, FakePin] = field(default_factory=dict)
    pool_bytes: int = 0
    held_bytes: int = 0
    drops: int = 0
    capture_faults: dict[GraphKey, Callable[[], Exception]] = field(default_factory=dict)
    tries: list[GraphKey] = field(default_factory=list)
    takes: Callable[[], None] = lambda: None
    room: float = inf
    lost_bytes: float = 0  # to captures that found no room, until all is dropped

    def measure(self, key: GraphKey) -> int:
        if key in self.faults:
            raise self.faults[key]()
        return self._intermediates(key)

    def capture(self, key: GraphKey) -> Captured:
        self.takes()
        self.tries.append(key)
        if key in self.capture_faults:
            raise self.capture_faults[key]()
        growth = new = max(0, self._intermediates(key) - self.pool_bytes)
        growth += self.block_bytes if growth else 0
        if self.held_bytes + self.lost_bytes + growth + self.per_graph > self.room:
            self.lost_bytes = self.room - self.held_bytes
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.pool_bytes += new
        self.held_bytes += growth + self.per_graph
        self.captured.append(key)
        self.pins[key] = FakePin(key.subnet_id)
        return Captured(FakeGraph(), self.pins[key], growth + self.per_graph)

    def renew_pool(self) -> None:
        self.pool_bytes = 0

    def drop(self) -> None:
        self.drops += 1
        self.pool_bytes = self.held_bytes = 0
        self.lost_bytes = 0

    def _intermediates(self, key: GraphKey) -> int:
        return key.batch_size * self.mib.get(key.subnet_id, 1) * MIB
