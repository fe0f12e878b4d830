"""`CudaGraphs`: which (subnet, padded batch) pairs are captured, and what may still be replayed.

Pure bookkeeping: a `Capturer` measures, captures and frees; this decides how (`HotGraphs` which).
Pairs are captured largest first, because a pool that is shared grows to its largest member only if
that one comes first, and only when `capture` is called, never by a look-up. A live graph pins what
it reads. When that must go the graph is *retired*: its pins are let go (after its last replay) and
it is not replayed again, but it is kept, since destroying one graph can break its siblings. What it
holds in the pool comes back only by `drop`, which frees all of them at once while none is in use.

Thread-safe.
"""

from __future__ import annotations

import threading
import time
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from subnetact.cuda.accelerator import Replay
from subnetact.device import is_out_of_memory

_T = TypeVar("_T")
OUT_OF_MEMORY = "out of memory"
"""Why a pair has no graph although it was to have one: it may get one later."""
OVER_BUDGET = "over the graph budget"
FAULT = "capture failed"
_FIRST_GRAPH_BYTES = 2**20  # of a graph beside its intermediates, until one has been measured


class GraphKey(NamedTuple):
    """What a graph computes: one subnet on a padded batch of this size."""

    subnet_id: str
    batch_size: int


class Pin(Protocol):
    """What a live graph reads, kept alive until `release`."""

    def reads(self) -> Hashable:
        """Say what is read; `CudaGraphs.retire` asks whether that is stale."""
        ...

    def release(self) -> None: ...


class Captured(NamedTuple):
    """A captured pair: its graph, what it pins, the bytes by which it made the pool grow."""

    graph: Replay
    pin: Pin
    num_bytes: int


class Capturer(Protocol):
    """Captures pairs on a device."""

    def measure(self, key: GraphKey) -> int:
        """Run a pair eagerly, as it will be captured; return the bytes of its intermediates.

        Raises CaptureError when it can't be captured, a text of one line.
        """
        ...

    def capture(self, key: GraphKey) -> Captured:
        """Capture a pair that was measured."""
        ...

    def renew_pool(self) -> None:
        """Capture into a fresh pool from now on; see `Accelerator`."""
        ...

    def drop(self) -> None:
        """Free everything captured."""
        ...


class CaptureError(RuntimeError):
    """A pair can't be captured, for a reason that is not a fault."""


@dataclass(slots=True)
class _Entry:
    captured: Captured
    leases: int = 0
    is_retired: bool = False


class GraphStatus(NamedTuple):
    """What is captured and what came of look-ups; `fallbacks` counts by reason."""

    live: int
    retired: int
    held_bytes: int
    replays: int
    fallbacks: Mapping[str, int]
    refusals: Mapping[GraphKey, str]


class Lease:
    """The right to replay one graph; a context manager, so that it is given back."""

    __slots__ = ("_entry", "_graphs", "graph", "key")

    def __init__(self, graphs: CudaGraphs, key: GraphKey, entry: _Entry):
        self.key = key
        self.graph = entry.captured.graph
        self._graphs = graphs
        self._entry = entry

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self._graphs._give_back(self._entry)


class CudaGraphs:
    """The captured graphs of one device; `budget_bytes` limits them (None: no limit, 0: none)."""

    def __init__(
        self,
        capturer: Capturer,
        budget_bytes: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"graph budget_bytes is {budget_bytes}, allowed 0 or more, or None")
        self.budget_bytes = budget_bytes
        self._capturer = capturer
        self._clock = clock
        self.capture_s = 0.0  # what the last capture took
        self._capturing = threading.Lock()  # one thread captures or drops at a time
        self._lock = threading.Lock()
        self._live: dict[GraphKey, _Entry] = {}
        self._retired: list[_Entry] = []
        self._ladder: dict[str, tuple[int, ...]] = {}  # live batch sizes of a subnet, ascending
        self._version = 0
        self._sized: dict[GraphKey, int] = {}  # bytes of the intermediates of those measured
        self._refusals: dict[str, dict[int, str]] = {}  # why, by batch size, of a subnet
        self._held_bytes = 0
        self._pool_bytes = 0  # the largest intermediates of those captured: the pool has room
        self._graph_bytes = _FIRST_GRAPH_BYTES
        self._replays = 0
        self._fallbacks: Counter[str] = Counter()
        self._has_warned = False

    @property
    def status(self) -> GraphStatus:
        """A snapshot."""
        with self._lock:
            return GraphStatus(
                len(self._live),
                len(self._retired),
                self._held_bytes,
                self._replays,
                dict(self._fallbacks),
                {
                    GraphKey(subnet_id, size): reason
                    for subnet_id, reasons in self._refusals.items()
                    for size, reason in reasons.items()
                },
            )

    @property
    def live(self) -> tuple[GraphKey, ...]:
        """What can be replayed, in order of capture: largest first."""
        with self._lock:
            return tuple(self._live)

    @property
    def ladders(self) -> Mapping[str, tuple[int, ...]]:
        """The batch sizes that each subnet has live graphs of, ascending."""
        return self._ladder

    @property
    def version(self) -> int:
        """Goes up with every change of what can be replayed."""
        return self._version

    @property
    def pool_bytes(self) -> int:
        """The largest intermediates of a captured pair: the pool, which all of them share."""
        return self._pool_bytes

    @property
    def graph_bytes(self) -> int:
        """What a graph takes beside its intermediates: the most so far, or a guess.

        As told by those that found room in the pool: one that makes it grow takes whole blocks, and
        what the first capture of a process leaves.
        """
        return self._graph_bytes

    def intermediate_bytes(self, key: GraphKey) -> int:
        """Bytes of a pair's intermediates; 0 where it was not measured."""
        return self._sized.get(key, 0)

    def is_too_large(self, key: GraphKey) -> bool:
        """Whether the budget has no room for a pair, whatever else goes."""
        needed = self.intermediate_bytes(key) + self._graph_bytes
        return self.budget_bytes is not None and needed > self.budget_bytes

    def refusal(self, key: GraphKey) -> str:
        """Return why a pair has no graph, where it was to have one; else nothing."""
        return self._refusals.get(key.subnet_id, {}).get(key.batch_size, "")

    def measure(self, keys: Iterable[GraphKey]) -> None:
        """Run pairs eagerly as they would be captured, once each; a capture need not then."""
        with self._capturing:
            self._measured(keys)

    def capture(self, keys: Iterable[GraphKey], *, most: int | None = None) -> int:
        """Capture what is not live yet, largest first, within the budget; return how many are.

        At most so many, where `most` says that; then the first one that fails is the last.
        Whatever is refused runs eagerly, for the reason in `status.refusals`: the budget, memory,
        or what the capturer says. Not for the request path: it takes the device for seconds.
        """
        with self._capturing:
            num_captured = 0
            for key, num_bytes in self._measured(keys):
                if num_captured == most:
                    break
                is_live = self._capture(key, num_bytes)
                num_captured += is_live
                if most is not None and not is_live and self.refusal(key) != OVER_BUDGET:
                    break
            return num_captured

    def lease(self, subnet_id: str, num_samples: int) -> Lease | None:
        """Return the smallest live graph that takes `num_samples`, None: run eagerly.

        O(log n) in the batch sizes of one subnet, whatever the number of layers. Counts either
        way; the reason of a fall-back is the refusal of the smallest size that was wanted.
        """
        with self._lock:
            ladder = self._ladder.get(subnet_id, ())
            place = bisect_left(ladder, num_samples)
            if place == len(ladder):
                self._fallbacks[self._reason(subnet_id, num_samples)] += 1
                return None
            key = GraphKey(subnet_id, ladder[place])
            entry = self._live[key]
            entry.leases += 1
            self._replays += 1
        return Lease(self, key, entry)

    def count_eager(self, reason: str) -> None:
        """Count a batch that was to run without a graph."""
        with self._lock:
            self._fallbacks[reason] += 1

    def retire(self, is_stale: Callable[[Hashable], bool]) -> int:
        """Retire the live graphs whose pins are stale; return how many."""
        freed: list[_Entry] = []
        with self._lock:
            stale = [k for k, e in self._live.items() if is_stale(e.captured.pin.reads())]
            for key in stale:
                entry = self._live.pop(key)
                entry.is_retired = True
                self._retired.append(entry)
                self._refuse(key, "retired: its slices were evicted")
                if not entry.leases:
                    freed.append(entry)
            self._index()
        for entry in freed:
            entry.captured.pin.release()
        return len(stale)

    def drop(self) -> int:
        """Free every graph, live or retired, and return the bytes that they held.

        Raises RuntimeError while one of them is being replayed: this is for an idle device.
        """
        with self._capturing:
            with self._lock:
                entries = [*self._live.values(), *self._retired]
                if any(entry.leases for entry in entries):
                    raise RuntimeError("graphs are in use: drop them while the device is idle")
                held = self._held_bytes
                pins = [entry.captured.pin for entry in self._live.values()]
                self._live.clear()
                self._retired.clear()
                self._refusals.clear()
                self._held_bytes = self._pool_bytes = 0
                self._index()
            entries.clear()
            for pin in pins:
                pin.release()
            self._capturer.drop()
            return held

    def _measured(self, keys: Iterable[GraphKey]) -> list[tuple[GraphKey, int]]:
        """Return those that are not live, and can be measured, with their bytes; largest first."""
        found: list[tuple[GraphKey, int]] = []
        for key in dict.fromkeys(keys):
            if key in self._live:
                continue
            num_bytes = self._sized.get(key)
            if num_bytes is None:
                num_bytes = self._try(key, lambda key=key: self._capturer.measure(key))
            if num_bytes is not None:
                self._sized[key] = num_bytes
                found.append((key, num_bytes))
        found.sort(key=lambda pair: (-pair[1], -pair[0].batch_size, pair[0].subnet_id))
        return found

    def _capture(self, key: GraphKey, num_bytes: int) -> bool:
        growth = max(0, num_bytes - self._pool_bytes)
        needed = growth + self._graph_bytes
        if self.budget_bytes is not None and self._held_bytes + needed > self.budget_bytes:
            with self._lock:
                self._refuse(key, OVER_BUDGET)
            return False
        start_s = self._clock()
        captured = self._try(key, lambda: self._capturer.capture(key))
        if captured is None:
            if self.refusal(key) in (FAULT, OUT_OF_MEMORY):  # a capture had begun
                self._begin_anew(self.refusal(key))
            return False
        self.capture_s = self._clock() - start_s
        with self._lock:
            self._held_bytes += captured.num_bytes
            self._pool_bytes = max(self._pool_bytes, num_bytes)
            if (
                not growth
            ):  # else it is not known what of it is the pool's, which takes whole blocks
                self._graph_bytes = max(self._graph_bytes, captured.num_bytes)
            self._live[key] = _Entry(captured)
            self._refusals.get(key.subnet_id, {}).pop(key.batch_size, None)
            self._index()
        return True

    def _begin_anew(self, reason: str) -> None:
        """Go on in a fresh pool: a capture that failed may take those behind it along.

        What one took that found no memory is freed where no other graph is kept; else by `drop`.
        """
        self._capturer.renew_pool()
        self._pool_bytes = 0
        with self._lock:
            is_alone = not self._live and not self._retired
        if is_alone and reason == OUT_OF_MEMORY:
            self._capturer.drop()

    def _try(self, key: GraphKey, call: Callable[[], _T]) -> _T | None:
        """Return what `call` gives, None and a refusal where it fails."""
        try:
            return call()
        except CaptureError as error:
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                reason = OUT_OF_MEMORY
                self._warn(key, reason)
            else:  # an operator that can't be captured says so like this
                reason = FAULT
                self._warn(key, f"{reason}: {str(error).splitlines()[0]}")
        with self._lock:
            self._refuse(key, reason)
        return None

    def _warn(self, key: GraphKey, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"no CUDA graph for {key.subnet_id} at batch {key.batch_size} ({reason}); it and "
                "others that have none run eagerly, slower, with the same results",
                RuntimeWarning,
                stacklevel=5,
            )

    def _refuse(self, key: GraphKey, reason: str) -> None:
        """Note why a pair has no graph (lock held)."""
        self._refusals.setdefault(key.subnet_id, {})[key.batch_size] = reason

    def _reason(self, subnet_id: str, num_samples: int) -> str:
        """Why there is no graph for this batch (lock held)."""
        reasons = self._refusals.get(subnet_id, {})
        fitting = [size for size in reasons if size >= num_samples]
        if fitting:
            return reasons[min(fitting)]
        return "larger than any captured batch" if self._ladder.get(subnet_id) else "not captured"

    def _index(self) -> None:
        """Rebuild the ladders (lock held)."""
        self._version += 1
        sizes: dict[str, list[int]] = {}
        for key in self._live:
            sizes.setdefault(key.subnet_id, []).append(key.batch_size)
        self._ladder = {subnet_id: tuple(sorted(found)) for subnet_id, found in sizes.items()}

    def _give_back(self, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
            is_free = entry.is_retired and not entry.leases
        if is_free:
            entry.captured.pin.release()
