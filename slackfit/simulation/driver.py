"""Driving a scheduler through virtual time: the loop that the simulations share.

Order of events, the one a live engine keeps:
  1. at a completion: `complete`, then `poll` until it gives no batch or no worker is free;
  2. at an arrival: `submit`, then, if a worker is free, `poll` likewise;
  3. at equal times completions come first (in order of batch id), then device events, then
     arrivals in their order.
Where the policy waits although a worker is free, `poll` also happens at `next_wakeup_s`. What
still waits when nothing can happen any more leaves as `cancelled`.

Arrivals between two completions find all workers busy, so they are submitted in one call; each
batch costs a handful of calls, each query a few tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Dispatch
from slackfit.simulation.devices import Devices, Slowdown

_NEVER = float("inf")

Sink = Callable[[Sequence[Outcome]], object]


class DrivenScheduler(Protocol):
    """What the driver calls: a `Scheduler` or something that wraps one."""

    @property
    def num_workers(self) -> int: ...
    def __len__(self) -> int: ...
    def submit(self, query: Query, now_s: float) -> Outcome | None: ...
    def submit_all(self, queries: Sequence[Query]) -> list[Outcome]: ...
    def cancel_all(self, now_s: float, reason: str = ...) -> tuple[Outcome, ...]: ...
    def poll(self, now_s: float, worker_id: int | None = None) -> Dispatch: ...
    def complete(self, batch_id: int, now_s: float) -> tuple[Outcome, ...]: ...
    def fail(self, batch_id: int, now_s: float, reason: str) -> tuple[Outcome, ...]: ...
    def retire(self, worker_id: int) -> None: ...
    def next_wakeup_s(self) -> float | None: ...


class VirtualTimeDriver:
    """One simulation under way; `sink` is handed the outcomes as they come."""

    def __init__(self, scheduler: DrivenScheduler, devices: Devices, sink: Sink) -> None:
        """Begin at time 0; there are as many devices as the scheduler has workers."""
        self._scheduler = scheduler
        self._devices = devices
        self._note = sink
        # The next one last.
        self._events = sorted(devices.events, key=lambda event: event.at_s, reverse=True)
        self._has_events = bool(self._events)
        self._num_alive = scheduler.num_workers
        self._completions: list[tuple[float, int]] = []  # a heap of (finish, batch id)
        self._running: dict[int, tuple[float, int]] = {}  # per worker, kept if one can fail
        self._now_s = 0.0

    def feed(self, queries: Sequence[Query]) -> None:
        """Go on until the last of `queries` has arrived; they follow those fed before."""
        at = 0
        while at < len(queries):
            next_s = queries[at].arrival_s
            self.advance(next_s)
            if len(self._completions) < self._num_alive:
                self._arrive(queries[at])
                at += 1
            else:
                at = self._arrive_while_busy(queries, at)

    def end(self) -> None:
        """Go on until every query has ended."""
        while self._completions:
            self.advance(_NEVER)
        self._wake_before(_NEVER)
        if len(self._scheduler):
            self._note(self._scheduler.cancel_all(self._now_s))

    def advance(self, until_s: float) -> None:
        """Let happen what does before an arrival at `until_s`, or everything before `end`."""
        completions = self._completions
        while True:
            event_s = self._events[-1].at_s if self._events else _NEVER
            finish_s = completions[0][0] if completions else _NEVER
            next_s = min(finish_s, event_s, until_s)
            if len(completions) < self._num_alive and len(self._scheduler):  # the policy waits
                self._wake_before(next_s)
                finish_s = completions[0][0] if completions else _NEVER
            if finish_s <= min(event_s, until_s) and finish_s < _NEVER:
                now_s, batch_id = heappop(completions)
                self._note(self._scheduler.complete(batch_id, now_s))
                self._poll(now_s)
            elif event_s <= until_s and event_s < _NEVER:
                self._happen()
            else:
                return

    def _arrive(self, query: Query) -> None:
        refused = self._scheduler.submit(query, query.arrival_s)
        if refused is not None:
            self._note((refused,))
        self._poll(query.arrival_s)

    def _arrive_while_busy(self, queries: Sequence[Query], at: int) -> int:
        """Submit what arrives before anything else happens; return the index of the rest."""
        until_s = self._completions[0][0] if self._completions else _NEVER
        if self._events:
            until_s = min(until_s, self._events[-1].at_s)
        stop = at + 1
        while stop < len(queries) and queries[stop].arrival_s < until_s:
            stop += 1
        self._note(self._scheduler.submit_all(queries[at:stop]))
        self._now_s = queries[stop - 1].arrival_s
        return stop

    def _poll(self, now_s: float) -> None:
        self._now_s = now_s
        completions = self._completions
        scheduler = self._scheduler
        while len(completions) < self._num_alive:
            batch, dropped = scheduler.poll(now_s)
            if dropped:
                self._note(dropped)
            if batch is None:
                return
            finish_s = now_s + self._devices.latency_s(batch)
            heappush(completions, (finish_s, batch.batch_id))
            if self._has_events:
                self._running[batch.worker_id] = (finish_s, batch.batch_id)
            if not len(scheduler):
                return

    def _wake_before(self, until_s: float) -> None:
        """Poll at the wake-ups that come before the next event."""
        wakeup_s = self._scheduler.next_wakeup_s()
        while wakeup_s is not None and wakeup_s < until_s:
            self._poll(wakeup_s)
            wakeup_s = self._scheduler.next_wakeup_s()

    def _happen(self) -> None:
        """Let the next event happen to its device."""
        event = self._events.pop()
        self._now_s = event.at_s
        if isinstance(event, Slowdown):
            self._devices.slow_down(event.worker_id, event.factor)
            return
        entry = self._running.get(event.worker_id)
        if entry in self._completions:
            self._completions.remove(entry)
            heapify(self._completions)
            self._note(self._scheduler.fail(entry[1], event.at_s, "worker failed"))
        self._scheduler.retire(event.worker_id)
        self._num_alive -= 1
