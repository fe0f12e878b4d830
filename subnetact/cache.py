"""`SubgraphCache`: slices of a supernet's weights kept in the device's own form, under a budget.

SubGraph Stationary (SUSHI, MLSys'23): what consecutive subnets share stays resident in the form
that the device computes on. A slice is named by layer, shape and layout, so every subnet that uses
the same slice shares one copy; a *folded* slice, with a norm folded in, belongs to one subnet.
Residency changes cost, never results.

Bytes are counted from allocation until the last reader has let go, so an evicted slice that a
running batch still reads counts against the budget until the batch has ended. Thread-safe.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

import torch

from subnetact.device import is_out_of_memory

SLICE_PACKINGS = ("folded", "shared", "one_copy")
"""How weights lie on a device: slices with a subnet's norm folded in, slices for every subnet, or
slices only where a layer needs a layout of its own."""


class SliceKey(NamedTuple):
    """What a resident slice is a slice of; `owner` is a subnet id where its norm is folded in."""

    layer: str
    shape: tuple[int, ...]
    layout: Hashable
    owner: str | None


class ResidentSlice:
    """A weight resident in the device's own layout; alive as long as somebody reads it."""

    __slots__ = ("__weakref__", "bias", "num_bytes", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, num_bytes: int):
        """`num_bytes` is what both hold, in the device's layout."""
        self.weight = weight
        self.bias = bias
        self.num_bytes = num_bytes


class CacheCounts(NamedTuple):
    """What a cache has done so far; `hits + misses == lookups`."""

    lookups: int
    hits: int
    misses: int
    loads: int
    evictions: int
    refusals: int
    failures: int


class SubgraphCache:
    """Resident slices by key, at most `budget_bytes` of them (None: no limit)."""

    def __init__(self, budget_bytes: int | None = None):
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"budget_bytes is {budget_bytes}, allowed 0 or more, or None")
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._slices: dict[SliceKey, ResidentSlice] = {}
        self._held_bytes = 0  # allocated or reserved, until freed
        self._peak_bytes = 0
        self._freed: deque[int] = deque()  # by finalizers, which may run anywhere: no lock there
        self._lookups = self._hits = 0
        self._loads = self._evictions = self._refusals = self._failures = 0
        self._version = 0
        self._listeners: list[Callable[[], object]] = []

    @property
    def version(self) -> int:
        """Goes up with every change of what is resident."""
        return self._version

    @property
    def counts(self) -> CacheCounts:
        """What was looked up, loaded and evicted; refusals: the budget had no room."""
        with self._lock:
            return CacheCounts(
                self._lookups,
                self._hits,
                self._lookups - self._hits,
                self._loads,
                self._evictions,
                self._refusals,
                self._failures,
            )

    def tally(self) -> dict[str, int]:
        """Return the counts and the bytes held, by the names that an executor gives them."""
        counts, held_bytes = self.counts, self.held_bytes
        return {
            "hits": counts.hits,
            "misses": counts.misses,
            "loads": counts.loads,
            "evictions": counts.evictions,
            "held_bytes": held_bytes,
            "slice_refusals": counts.refusals,
            "out_of_memory": counts.failures,
        }

    @property
    def held_bytes(self) -> int:
        """Bytes that count against the budget now: resident, being loaded, or still being read."""
        with self._lock:
            self._collect()
            return self._held_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that was ever held."""
        return self._peak_bytes

    @property
    def resident(self) -> frozenset[SliceKey]:
        """Keys of the resident slices."""
        with self._lock:
            return frozenset(self._slices)

    def on_eviction(self, listener: Callable[[], object]) -> None:
        """Have `listener` called after each eviction; it lets go of slices that it reads."""
        self._listeners.append(listener)

    def snapshot(self) -> tuple[int, Mapping[SliceKey, ResidentSlice]]:
        """Return (version, the resident slices), consistent with each other."""
        with self._lock:
            return self._version, dict(self._slices)

    def count(self, lookups: int, hits: int) -> None:
        """Note a batch that looked up `lookups` slices and found `hits`."""
        with self._lock:
            self._lookups += lookups
            self._hits += hits

    def load(self, key: SliceKey, num_bytes: int, make: Callable[[], ResidentSlice]) -> bool:
        """Make a slice resident by calling `make`; False where the budget or memory has no room.

        `num_bytes` is what the slice will hold at most. A resident key is left as it is. When the
        device runs out of memory, that is counted and warned of once; the slice is streamed. Any
        other fault of `make` is raised.
        """
        with self._lock:
            if key in self._slices:
                return True
            self._collect()
            if self.budget_bytes is not None and self._held_bytes + num_bytes > self.budget_bytes:
                self._refusals += 1
                return False
            self._held_bytes += num_bytes
            self._peak_bytes = max(self._peak_bytes, self._held_bytes)
        try:
            made = make()
        except Exception as error:  # whatever it was, the room goes back; raised again below
            is_memory = is_out_of_memory(error)
            self._give_back(num_bytes, is_failure=is_memory)
            if not is_memory:
                raise
            self._warn(key, num_bytes, error)
            return False
        assert made.num_bytes <= num_bytes, "a slice holds what its layout says, or less"
        with self._lock:
            self._held_bytes -= num_bytes - made.num_bytes
            # Calls hold the tensor, not the slice, so its end is the end of the last reader.
            weakref.finalize(made.weight, self._freed.append, made.num_bytes).atexit = False
            if key not in self._slices:  # else another thread was faster; ours is freed
                self._slices[key] = made
                self._loads += 1
                self._version += 1
        return True

    def evict(self, keys: Iterable[SliceKey]) -> int:
        """Drop slices and return how many were resident; running batches finish with them."""
        with self._lock:
            dropped = [self._slices.pop(key) for key in set(keys) if key in self._slices]
            if dropped:
                self._evictions += len(dropped)
                self._version += 1
        if dropped:
            for listener in self._listeners:
                listener()
        return len(dropped)

    def clear(self) -> None:
        """Drop everything."""
        self.evict(self.resident)

    def _give_back(self, num_bytes: int, *, is_failure: bool) -> None:
        with self._lock:
            self._held_bytes -= num_bytes
            self._failures += is_failure

    def _warn(self, key: SliceKey, num_bytes: int, error: Exception) -> None:
        if self.counts.failures == 1:
            warnings.warn(
                f"no memory to pack {key.layer} ({num_bytes} bytes): {error}; it and others that "
                "find none are streamed, slower, with the same results",
                RuntimeWarning,
                stacklevel=3,
            )

    def _collect(self) -> None:
        """Take back the bytes of slices that were freed since the last time (lock held)."""
        while self._freed:
            self._held_bytes -= self._freed.popleft()
