"""`ResidencyKeeper`: changes what is resident while a server serves, off the request path.

A thread of its own is given which subnet each batch ran, asks a residency policy what to keep, and
loads one session at a time: in the gap between two batches, or, when there has been none for
`patience_s`, beside one. What was wanted and is not resident yet is served by views, with the same
results.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from slackfit.residency import Keys, ResidencyPolicy, Savings

_PATIENCE_S = 0.05
_MAX_REFUSALS = 3
_MAX_UNHEARD = 4096  # batches that a keeper may lag behind; older ones say little about the mix


class ResidentStore(Protocol):
    """What holds things resident by the keys that the savings name them by."""

    @property
    def resident(self) -> frozenset[str]: ...

    def load(self, key: Hashable) -> bool:
        """Make one resident; False where there is no room for it."""
        ...

    def evict_others(self, keep: Iterable[Hashable]) -> int: ...


class ResidencyKeeper:
    """Drives one store by one policy; see the module."""

    def __init__(
        self,
        store: ResidentStore,
        policy: ResidencyPolicy,
        savings: Savings,
        *,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Keep `policy`'s choice resident; `savings` says in which order to load it: most seconds
        per byte first.
        """
        self._store = store
        self._policy = policy
        self._savings = savings
        self._patience_s = patience_s
        self._clock = clock
        self._heard: deque[str] = deque(maxlen=_MAX_UNHEARD)
        self._missing: deque[tuple[Hashable, int]] = deque()  # and how often it was refused
        self._running = 0  # batches
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Without it, `step` is called by whoever drives."""
        self._thread = threading.Thread(target=self._main, name="residency", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after what it loads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def batch(self, subnet_id: str) -> Iterator[None]:
        """Note that a batch runs on a subnet; two short locked sections are all it costs."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._heard.append(subnet_id)
                self._changed.notify_all()

    def step(self) -> bool:
        """Hear what ran, and load one; return whether more is to be done."""
        while self._heard:
            wanted = self._policy.observe(self._heard.popleft())
            if wanted is not None:
                self._plan(wanted)
        if self._missing:
            key, refusals = self._missing.popleft()
            if not self._store.load(key) and refusals < _MAX_REFUSALS:
                self._missing.append((key, refusals + 1))
        return bool(self._missing or self._heard)

    def _plan(self, wanted: Keys) -> None:
        """Evict what is wanted no more, and queue what is missing."""
        self._store.evict_others(wanted)
        missing = wanted - self._store.resident
        self._missing = deque((key, 0) for key in sorted(missing, key=self._rank))

    def _rank(self, key: Hashable) -> tuple[float, str]:
        candidate = self._savings.candidates[key]
        return -sum(candidate.saved_s.values()) / candidate.num_bytes, str(key)

    def _main(self) -> None:
        while self._wait():
            self.step()

    def _wait(self) -> bool:
        """Wait for work, then for a gap between batches, not for ever; False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._missing or self._heard)
            until_s = self._clock() + self._patience_s
            while self._missing and self._running and not self._is_closed:
                left_s = until_s - self._clock()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            return not self._is_closed
