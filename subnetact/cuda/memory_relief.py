"""`MemoryRelief`: what an executor gives up when a device's memory runs out, and takes back later.

Graphs go first: they are often the larger part, and slices that they pin are not freed before. Then
the slices of other subnets, at last all. A device that is idle gets them back, in steps that are
short enough for a batch that comes meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from subnetact.cache import SliceKey
from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_graphs import OUT_OF_MEMORY, CudaGraphs, GraphKey
from subnetact.cuda.cuda_slice import CudaSlice
from subnetact.cuda.cuda_supernet import CudaSupernet


class MemoryRelief:
    """Used with the device held (`CudaExecutor`)."""

    def __init__(self, net: CudaSupernet, graphs: CudaGraphs, accelerator: Accelerator):
        self._net = net
        self._graphs = graphs
        self._accelerator = accelerator
        self._slices: dict[SliceKey, CudaSlice] = {}  # given up, or refused for want of memory
        self._keys: dict[GraphKey, None] = {}
        self.keeps_graphs = True  # whether those that it drops are its to capture again

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing for want of memory."""
        return not self._slices and not self._keys

    def load(self, slices: Iterable[CudaSlice]) -> int:
        """Make slices resident, in order; return how many are. What finds no memory is noted."""
        return sum(self._load(wanted) for wanted in slices)

    def steps(self, subnet_id: str) -> Iterator[Callable[[], None]]:
        """What can be given up for a batch on a subnet, one after the other."""
        own = frozenset(s.key for s in self._net.slices(subnet_id))
        yield self._drop_graphs
        yield lambda: self._evict_others(own)
        yield lambda: self._evict_others(frozenset())

    def note_refused_graphs(self) -> None:
        """Remember the pairs that found no memory when they were to be captured."""
        refusals = self._graphs.status.refusals
        self._keys |= dict.fromkeys(k for k, why in refusals.items() if why == OUT_OF_MEMORY)

    def leave_graphs(self) -> None:
        """Leave it to somebody else which graphs are captured again."""
        self.keeps_graphs = False
        self._keys.clear()

    def forget_slices(self) -> None:
        """Wish for none of the slices that were given up any more."""
        self._slices.clear()

    def take_back(self, for_s: float) -> bool:
        """Load and capture again what is missing; return whether all is back.

        Ends after `for_s`, or one step more, and with the first step that finds no memory.
        """
        end_s = time.monotonic() + for_s
        for wanted in list(self._slices.values()):
            self._load(wanted)
            if wanted.key in self._slices or time.monotonic() > end_s:
                return self.is_complete
        for key in list(self._keys):
            self._graphs.capture([key])
            if self._graphs.refusal(key) == OUT_OF_MEMORY:
                return False
            del self._keys[key]
            if time.monotonic() > end_s:
                return self.is_complete
        return self.is_complete

    def _load(self, wanted: CudaSlice) -> bool:
        failures = self._net.cache.counts.failures
        is_resident = self._net.load([wanted]) == 1
        if self._net.cache.counts.failures > failures:
            self._slices[wanted.key] = wanted
        else:  # resident, or the budget has no room for it
            self._slices.pop(wanted.key, None)
        return is_resident

    def _drop_graphs(self) -> None:
        if self.keeps_graphs:
            self._keys |= dict.fromkeys(self._graphs.live)
        if self._graphs.status.held_bytes or self._graphs.live:
            self._graphs.drop()
        self._accelerator.trim()

    def _evict_others(self, keep: frozenset[SliceKey]) -> None:
        gone = self._net.cache.resident - keep
        ours = (s for subnet_id in self._net.subnet_ids for s in self._net.slices(subnet_id))
        self._slices |= {s.key: s for s in ours if s.key in gone}
        self._net.evict_others(keep)
        self._accelerator.trim()
