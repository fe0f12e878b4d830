"""`HotGraphs`: has graphs of what is launched lately, captured while no query needs the device.

What is hot is what `ValuePerByte` says, SubGraph Stationary's policy: of the (subnet, padded batch)
pairs that were launched, those whose graphs save most seconds per byte under the mix of late, where
that is more than capturing them takes. Until a pair has its graph it runs eagerly, or on a larger
graph of its subnet where that is faster.

Nothing here captures by itself. `next_errand` says what is to be done and about how long it takes,
and whoever has the device calls `run_errand` when there is time (`Engine`): one capture, or, where
cold graphs hold the memory that hot ones need, the drop of all of them, since single graphs can't
be destroyed (`CudaGraphs`). It has to be the thread that serves: libraries keep algorithms per
thread, a capture records whatever is launched on its stream meanwhile, and PyTorch allows one
capture at a time.

A capture that fails leaves its pair running eagerly. It is tried again after pauses that double; a
pair at fault itself (not for want of memory or slices) is given up after three tries. While memory
runs out all of them pause.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from math import inf
from typing import cast

import torch

from slackfit.errand import Errand
from slackfit.graph_forms import GraphForms, as_captured, batch_name
from slackfit.profile import LatencyProfile
from slackfit.residency import Savings, ValuePerByte
from subnetact.cuda.cuda_graphs import FAULT, OUT_OF_MEMORY, OVER_BUDGET, CudaGraphs, GraphKey

_RECENT = 64.0  # batches after which one counts half; pairs are more than the subnets they are of
_PLAN_EVERY = 16
_MAX_UNHEARD = 64  # batches without a gap: hearing takes time, and older ones say little
_TRIALS = 2  # the first capture of a process pays for what later ones find loaded
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 640.0
_MAX_FAULTS = 3
_REMEMBERED = 8  # captures, of which the slowest but one is what the next should take at most
_UNSEEN_S = 1.0  # what a capture is taken to take until there was one: none beside tight deadlines


class HotGraphs:
    """Follows the launches of one device; used by the thread that has it."""

    def __init__(
        self,
        profile: LatencyProfile,
        graphs: CudaGraphs,
        *,
        holding: AbstractContextManager[object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Go by the times of `profile`; `holding` keeps the device while something is captured.

        Raises ProfileError for a profile that does not say what batches take without a graph.
        """
        self._forms = GraphForms(profile)
        self._graphs = graphs
        self._holding = threading.Lock() if holding is None else holding
        self._clock = clock
        self._heard: deque[str] = deque(maxlen=_MAX_UNHEARD)
        self._sizes: dict[tuple[str, int], int | None] = {}  # the graph of a pair, as looked up
        self._seen = -1  # version of the graphs that this is of
        self._savings = Savings(())
        self._policy: ValuePerByte | None = None
        self._wanted: frozenset[GraphKey] = frozenset()
        self._missing: list[GraphKey] = []  # those that save most first
        self._refused: dict[GraphKey, _Refused] = {}
        self._needs_room = False
        self._pause_s = 0.0
        self._paused_until_s = -inf
        self._captures_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._drop_s = 0.0

    # --- for each batch --------------------------------------------------------------------------

    def note(self, subnet_id: str, size: int) -> None:
        """Note a launch of a padded batch; it counts when next there is time."""
        if self._forms.knows(subnet_id, size):
            self._heard.append(batch_name(subnet_id, size))

    def graph_size(self, subnet_id: str, size: int) -> int | None:
        """Return the size of the graph that a padded batch should run on, None: eagerly."""
        self._refresh()
        key = subnet_id, size
        if key not in self._sizes:
            live = self._graphs.ladders.get(subnet_id, ())
            known = self._forms.knows(subnet_id, size)
            self._sizes[key] = self._forms.graph_size(subnet_id, size, live) if known else size
        return self._sizes[key]

    # --- for plans -------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Goes up with every change of what `planned` says."""
        return self._graphs.version

    @property
    def num_missing(self) -> int:
        """How many graphs are hot and not captured yet, as far as was heard."""
        return sum(key not in self._refused for key in self._missing)

    def planned(self, profile: LatencyProfile, errand: Errand | None = None) -> LatencyProfile:
        """Return what batches take with the graphs that there are now, or will be after an errand.

        `profile` has the rows of the one that was given, or of some of its subnets, or is cut to a
        smaller largest batch. A graph that an errand captures is not counted on before it is there.
        """
        is_loss = errand is not None and errand.slows
        live = {} if is_loss else self._graphs.ladders
        return as_captured(profile, self._forms.within(profile.max_batch_size, live))

    # --- errands ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def begin(self, keys: Iterable[GraphKey]) -> None:
        """Measure the pairs, and capture the two largest; for the warm-up, which may take time.

        This shows whether capturing works here and what it takes, and leaves a pool in which the
        others find room. Only these two are not of what the traffic uses.
        """
        pairs = tuple(keys)
        with self._holding:
            self._graphs.measure(pairs)
            for _ in range(_TRIALS - len(self._graphs.live)):
                self._graphs.capture(pairs, most=1)
        if self._policy is not None:
            return
        self._captures_s.append(self._graphs.capture_s if self._graphs.live else _UNSEEN_S)
        self._drop_s = self._capture_s
        self._savings = self._forms.savings(self._graphs.graph_bytes, self._capture_s)
        budget = self._graphs.budget_bytes
        left = sys.maxsize if budget is None else max(0, budget - self._graphs.pool_bytes)
        self._policy = ValuePerByte(self._savings, left, recent=_RECENT, every=_PLAN_EVERY)

    def next_errand(self) -> Errand | None:
        """Hear what was launched; return what is to be done, None: nothing now."""
        self._hear()
        self._refresh()
        if self._next_key() is None:
            return None
        if self._needs_room:
            return Errand(self._drop_s, slows=True)
        return Errand(self._capture_s)

    @torch.inference_mode()
    def run_errand(self) -> None:
        """Do what `next_errand` said."""
        key = self._next_key()
        if key is None:
            return
        start_s = self._clock()
        with self._holding:
            if self._needs_room:
                self._needs_room = False
                self._graphs.drop()
                self._drop_s = self._clock() - start_s
            else:
                self._capture(key)
        self._refresh()

    def pause(self) -> None:
        """Capture nothing for a while: memory ran out. Each time in a row for twice as long."""
        self._pause_s = _longer(self._pause_s)
        self._paused_until_s = self._clock() + self._pause_s

    def _hear(self) -> None:
        if self._policy is None:
            self._heard.clear()
        while self._heard and self._policy is not None:
            wanted = self._policy.observe(self._heard.popleft())
            if wanted is not None:
                pairs = cast("frozenset[tuple[str, int]]", wanted)
                self._wanted = frozenset(GraphKey(*pair) for pair in pairs)
                self._needs_room = False
                self._seen = -1

    def _refresh(self) -> None:
        """Bring what depends on the live graphs and on the plan up to date, where that changed."""
        version = self._graphs.version
        if version == self._seen:
            return
        self._seen = version
        self._sizes.clear()
        live = frozenset(self._graphs.live)
        mix = {} if self._policy is None else self._policy.mix
        self._missing = sorted(self._wanted - live, key=lambda key: (-self._saved_s(key, mix), key))

    def _saved_s(self, key: GraphKey, mix: dict[str, float]) -> float:
        saved_s = self._savings.candidates[key].saved_s
        return sum(share * saved_s.get(name, 0.0) for name, share in mix.items())

    def _next_key(self) -> GraphKey | None:
        """What is to be captured next, and may be tried now; the largest first into an empty pool.

        That is by its intermediates: the pool grows to the sum of its members where they come in
        ascending order.
        """
        now_s = self._clock()
        if now_s < self._paused_until_s:
            return None
        able = (key for key in self._missing if self._refused.get(key, _FRESH).until <= now_s)
        if self._graphs.live:
            return next(able, None)
        return max(able, key=self._graphs.intermediate_bytes, default=None)

    def _capture(self, key: GraphKey) -> None:
        start_s = self._clock()
        is_live = self._graphs.capture([key])
        reason = "" if is_live else self._graphs.refusal(key) or FAULT
        if reason != OVER_BUDGET:  # that takes no time
            self._captures_s.append(self._clock() - start_s)
        if is_live:
            self._refused.pop(key, None)
            self._pause_s = 0.0
            return
        is_hopeless = reason == OVER_BUDGET and self._graphs.is_too_large(key)
        if reason == OVER_BUDGET and not is_hopeless and self._pays_to_drop():
            self._needs_room = True
            return
        if reason == OUT_OF_MEMORY:
            self.pause()
        refused = self._refused.setdefault(key, _Refused())
        refused.again(self._clock(), is_fault=reason == FAULT, is_last=is_hopeless)

    def _pays_to_drop(self) -> bool:
        """Whether what is hot, and can be had, saves more, for as long as the mix should last, than
        capturing it all anew takes, and something that is not hot holds memory.
        """
        assert self._policy is not None, "nothing is wanted before"
        live = frozenset(self._graphs.live)
        if live <= self._wanted and not self._graphs.status.retired:
            return False
        had = [key for key in self._wanted if self._refused.get(key, _FRESH).until < inf]
        mix, batches, savings = self._policy.mix, 2.0 * self._policy.lasted, self._savings
        gain_s = savings.expected_s(had, mix) - savings.expected_s(live, mix)
        return gain_s * batches > self._capture_s * len(had) + self._drop_s

    @property
    def _capture_s(self) -> float:
        """What a capture takes at most; one that took longer than all others is no rule."""
        return sorted(self._captures_s)[-2:][0]


class _Refused:
    """A pair that could not be captured: when it may be tried again."""

    def __init__(self) -> None:
        self.until = -inf
        self._pause_s = 0.0
        self._faults = 0

    def again(self, now_s: float, *, is_fault: bool, is_last: bool) -> None:
        """Note one more refusal; `is_last`: it will never be otherwise."""
        self._faults += is_fault
        self._pause_s = _longer(self._pause_s)
        is_last = is_last or self._faults >= _MAX_FAULTS
        self.until = inf if is_last else now_s + self._pause_s


_FRESH = _Refused()


def _longer(pause_s: float) -> float:
    return min(_LONGEST_PAUSE_S, 2.0 * pause_s) if pause_s else _FIRST_PAUSE_S
