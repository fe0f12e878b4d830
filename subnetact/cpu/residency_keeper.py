"""`ResidencyKeeper`: changes what is resident while a server serves, off the request path.

A thread of its own is given which subnet each batch ran, asks a residency policy what to keep, and
loads one slice at a time: in the gap between two batches, or, when there has been none for
`patience_s`, beside one. So no batch waits for more than the interpreter's turn; packing itself
runs without it. What was wanted and is not resident yet is served by views, with the same results.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from slackfit.residency import Keys, ResidencyPolicy, Savings
from subnetact.cache import SliceKey
from subnetact.cpu.packed_supernet import PackedSlice, PackedSupernet

_PATIENCE_S = 0.05
_MAX_REFUSALS = 3
_MAX_UNHEARD = 4096  # batches that a keeper may lag behind; older ones say little about the mix


class ResidencyKeeper:
    """Drives one supernet's cache by one policy; see the module."""

    def __init__(
        self,
        net: PackedSupernet,
        policy: ResidencyPolicy,
        savings: Savings,
        slices: Mapping[SliceKey, PackedSlice],
        *,
        patience_s: float = _PATIENCE_S,
        prepare: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Keep `policy`'s choice of `slices` resident; `prepare` runs first on the thread.

        `savings` says in which order to load: most seconds per byte first.
        """
        self._net = net
        self._policy = policy
        self._savings = savings
        self._slices = slices
        self._patience_s = patience_s
        self._prepare = prepare
        self._clock = clock
        self._heard: deque[str] = deque(maxlen=_MAX_UNHEARD)
        self._missing: deque[tuple[PackedSlice, int]] = deque()  # and how often it was refused
        self._running = 0  # batches
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Without it, `step` is called by whoever drives."""
        self._thread = threading.Thread(target=self._main, name="residency", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the slice that it loads."""
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
        """Hear what ran, and load one slice; return whether more is to be done."""
        while self._heard:
            wanted = self._policy.observe(self._heard.popleft())
            if wanted is not None:
                self._plan(wanted)
        if self._missing:
            form, refusals = self._missing.popleft()
            if not self._net.load([form]) and refusals < _MAX_REFUSALS:
                # What was evicted counts until the batch that reads it has ended.
                self._missing.append((form, refusals + 1))
        return bool(self._missing or self._heard)

    def _plan(self, wanted: Keys) -> None:
        """Evict what is wanted no more, and queue what is missing."""
        chosen = [self._slices[key] for key in wanted if isinstance(key, SliceKey)]
        self._net.evict_others(form.key for form in chosen)
        resident = self._net.cache.resident
        missing = [form for form in chosen if form.key not in resident]
        self._missing = deque((form, 0) for form in sorted(missing, key=self._rank))

    def _rank(self, form: PackedSlice) -> tuple[float, str]:
        mean_s = sum(self._savings.candidates[form.key].saved_s.values())
        return -mean_s / form.num_bytes, form.key.layer

    def _main(self) -> None:
        self._prepare()
        with torch.inference_mode():
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
