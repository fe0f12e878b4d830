"""The virtual-time driver: the very scheduler that serves, under a clock that jumps.

Order of events, the one a live engine keeps:
  1. at a completion: `complete`, then `poll` until it gives no batch or no worker is free;
  2. at an arrival: `submit`, then, if a worker is free, `poll` likewise;
  3. at equal times completions come first (in order of batch id), then arrivals in their order.
Where the policy waits although a worker is free, `poll` also happens at `next_wakeup_s`. What
still waits when nothing can happen any more leaves as `cancelled`.

Arrivals between two completions find all workers busy, so they are submitted in one call; each
batch costs a handful of calls, each query a few tuples.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduler import Dispatch, Scheduler

FloatArray = npt.NDArray[np.float64]
_NEVER = float("inf")
_PROGRESS_EVERY = 16_384  # arrivals


class DrivenScheduler(Protocol):
    """What the driver calls: a `Scheduler` or something that wraps one."""

    @property
    def num_workers(self) -> int: ...
    def __len__(self) -> int: ...
    def submit(self, query: Query, now_s: float) -> Outcome | None: ...
    def submit_all(self, queries: Sequence[Query]) -> list[Outcome]: ...
    def cancel(self, query_id: int, now_s: float, reason: str = ...) -> Outcome | None: ...
    def poll(self, now_s: float, worker_id: int | None = None) -> Dispatch: ...
    def complete(self, batch_id: int, now_s: float) -> tuple[Outcome, ...]: ...
    def next_wakeup_s(self) -> float | None: ...


def simulate(
    arrival_s: FloatArray,
    profile: LatencyProfile,
    policy: Policy,
    *,
    slo_s: float | FloatArray,
    num_workers: int = 1,
    seed: int = 0,
    dispatch_overhead_s: float = 0.0,
    drop_hopeless: bool | None = None,
    query_class: npt.NDArray[np.int64] | None = None,
    min_accuracy: float | FloatArray = 0.0,
    scheduler: DrivenScheduler | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Serve every arrival in virtual time; return one outcome each, outcome i for arrival i.

    `slo_s`, `min_accuracy` and `query_class` are one value, or one per arrival. A batch takes its
    profiled latency plus `dispatch_overhead_s`, of which scheduler and policy know nothing (what
    they shall know belongs in the profile). `seed` is for whatever is random in a run: so far
    nothing is. A given `scheduler` (a recording one, say) is driven as it is, and `profile`,
    `policy`, `num_workers` and `drop_hopeless` stand back. `progress` is called with (arrivals so
    far, all arrivals) now and then.

    Raises ValueError for arrivals that are not sorted and finite or values that do not match
    them, and PolicyError when the policy fails.
    """
    if not dispatch_overhead_s >= 0:
        raise ValueError(f"dispatch_overhead_s is {dispatch_overhead_s}, allowed 0 or more")
    if scheduler is None:
        scheduler = Scheduler(profile, policy, num_workers=num_workers, drop_hopeless=drop_hopeless)
    with _collector_paused():
        queries = _queries(arrival_s, slo_s, min_accuracy, query_class)
        run = _Run(scheduler, dispatch_overhead_s, len(queries))
        run.drive(queries, progress)
        return run.outcomes()


@contextmanager
def _collector_paused() -> Generator[None]:
    """Pause the cyclic collector: a run makes millions of tuples and no cycles (1.5x faster)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Run:
    """One simulation under way."""

    def __init__(self, scheduler: DrivenScheduler, overhead_s: float, count: int) -> None:
        self._scheduler = scheduler
        self._overhead_s = overhead_s
        self._completions: list[tuple[float, int]] = []  # a heap of (finish, batch id)
        self._by_id: list[Outcome | None] = [None] * count

    def outcomes(self) -> list[Outcome]:
        """Return every query's outcome in order of id."""
        ended = [outcome for outcome in self._by_id if outcome is not None]
        assert len(ended) == len(self._by_id), "every submitted query ends"
        return ended

    def drive(self, queries: list[Query], progress: Callable[[int, int], None] | None) -> None:
        """Run until every query has ended."""
        scheduler = self._scheduler
        completions = self._completions
        num_workers = scheduler.num_workers
        count = len(queries)
        at = 0
        report_at = _PROGRESS_EVERY
        while at < count or completions:
            next_s = queries[at].arrival_s if at < count else _NEVER
            if len(completions) < num_workers and len(scheduler):  # the policy waits
                self._wake_before(min(next_s, completions[0][0] if completions else _NEVER))
            if completions and completions[0][0] <= next_s:
                self._complete()
            elif len(completions) < num_workers:
                self._arrive(queries[at])
                at += 1
            else:
                at = self._arrive_while_busy(queries, at)
            if progress and at >= report_at:
                progress(at, count)
                report_at = at + _PROGRESS_EVERY
        self._finish(queries)
        if progress:
            progress(count, count)

    def _complete(self) -> None:
        now_s, batch_id = heappop(self._completions)
        self._note(self._scheduler.complete(batch_id, now_s))
        self._poll(now_s)

    def _arrive(self, query: Query) -> None:
        refused = self._scheduler.submit(query, query.arrival_s)
        if refused is not None:
            self._by_id[query.query_id] = refused
        self._poll(query.arrival_s)

    def _arrive_while_busy(self, queries: list[Query], at: int) -> int:
        """Submit what arrives before the next completion; return the index of the rest."""
        until_s = self._completions[0][0]
        stop = at + 1
        while stop < len(queries) and queries[stop].arrival_s < until_s:
            stop += 1
        self._note(self._scheduler.submit_all(queries[at:stop]))
        return stop

    def _poll(self, now_s: float) -> None:
        completions = self._completions
        scheduler = self._scheduler
        while len(completions) < scheduler.num_workers:
            batch, dropped = scheduler.poll(now_s)
            if dropped:
                self._note(dropped)
            if batch is None:
                return
            finish_s = now_s + batch.expected_latency_s + self._overhead_s
            heappush(completions, (finish_s, batch.batch_id))
            if not len(scheduler):
                return

    def _wake_before(self, until_s: float) -> None:
        """Poll at the wake-ups that come before the next event."""
        wakeup_s = self._scheduler.next_wakeup_s()
        while wakeup_s is not None and wakeup_s < until_s:
            self._poll(wakeup_s)
            wakeup_s = self._scheduler.next_wakeup_s()

    def _finish(self, queries: list[Query]) -> None:
        """End the queries that a policy left waiting for good."""
        if not len(self._scheduler):
            return
        self._wake_before(_NEVER)
        now_s = max(o.finish_s for o in self._by_id if o) if any(self._by_id) else 0.0
        now_s = max(now_s, queries[-1].arrival_s)
        for query in queries:
            if self._by_id[query.query_id] is None:
                outcome = self._scheduler.cancel(query.query_id, now_s)
                assert outcome is not None, "what has not ended waits"
                self._by_id[query.query_id] = outcome

    def _note(self, outcomes: Sequence[Outcome]) -> None:
        by_id = self._by_id
        for outcome in outcomes:
            by_id[outcome[0]] = outcome


def _queries(
    arrival_s: FloatArray,
    slo_s: float | FloatArray,
    min_accuracy: float | FloatArray,
    query_class: npt.NDArray[np.int64] | None,
) -> list[Query]:
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    if arrivals.ndim != 1 or not np.all(np.isfinite(arrivals)):
        raise ValueError(f"arrival_s has shape {arrivals.shape}, allowed one row of finite times")
    if np.any(np.diff(arrivals) < 0):
        at = int(np.argmax(np.diff(arrivals) < 0))
        raise ValueError(
            f"arrival_s must be sorted, but arrival {at + 1} ({arrivals[at + 1]} s) comes before "
            f"arrival {at} ({arrivals[at]} s)"
        )
    slo = _per_query("slo_s", slo_s, arrivals)
    if not np.all(slo > 0):
        raise ValueError(f"slo_s goes down to {slo.min()} s, allowed more than 0")
    floors = _per_query("min_accuracy", min_accuracy, arrivals)
    classes = _per_query("query_class", 0 if query_class is None else query_class, arrivals)
    columns = zip(
        range(len(arrivals)),
        arrivals.tolist(),
        (arrivals + slo).tolist(),
        floors.tolist(),
        classes.astype(np.int64).tolist(),
        repeat(None),
    )
    return list(map(Query._make, columns))


def _per_query(
    name: str, value: float | npt.NDArray[np.generic], arrivals: FloatArray
) -> FloatArray:
    values = np.asarray(value, dtype=np.float64)
    if values.ndim and values.shape != arrivals.shape:
        raise ValueError(
            f"{name} has shape {values.shape}, allowed one value or one for each of the "
            f"{len(arrivals)} arrivals"
        )
    return np.broadcast_to(values, arrivals.shape)
