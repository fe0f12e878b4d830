"""The scheduler: an EDF queue, a policy and worker slots. No clock, no thread, no I/O.

A driver calls it with the time of its own clock: `slackfit.simulate` with virtual time, the
server with real time. Both call `submit` and then `poll` at an arrival, `complete` and then
`poll` at a completion, so the same calls give the same decisions. Calls must not overlap (a
driver with threads holds a lock), and `now_s` must not run backwards.

Every admitted query gets exactly one `Outcome`: from `submit` (refused), `poll` (dropped),
`cancel`, `complete` or `fail`.

Which queries a batch holds. The policy decides for the most urgent query. Where that query's pin
or accuracy floor forbids the decided subnet, the fastest legal one takes its place, and the batch
is cut to what still meets the query's deadline there (if nothing does, it is kept). The batch is
filled in EDF order with queries that may run on that subnet, looking at no more than
`_LOOK_AHEAD` times its size; the others stay queued in their places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from math import ulp
from typing import NamedTuple

from slackfit.edf import EdfQueue
from slackfit.eligibility import Eligibility, is_plain
from slackfit.policy import Policy, QueueView, WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Batch, Decision, Outcome, Query, Status

_LOOK_AHEAD = 4  # waiting queries looked at per place in a batch, when some have wishes
_HISTORY = 65_536  # arrivals remembered for `arrivals_within`


class Dispatch(NamedTuple):
    """What `poll` did: a batch to run (or None), and the queries that left without running."""

    batch: Batch | None
    dropped: tuple[Outcome, ...]


_NOTHING = Dispatch(None, ())


class PolicyError(RuntimeError):
    """A policy raised, or decided something impossible. No query was lost: all still wait.

    `num_waiting`, `head` (the most urgent query), `now_s` and `worker_id` are the state it saw.
    """

    def __init__(self, policy: str, fault: str, view: _View, now_s: float) -> None:
        self.policy = policy
        self.num_waiting = len(view.queue)
        self.head = view.queue.head()
        self.now_s = now_s
        self.worker_id = view.worker.worker_id
        super().__init__(
            f"policy {policy!r} {fault}; {self.num_waiting} queries wait (all stay queued), the "
            f"head is query {self.head.query_id} with {self.head.deadline_s - now_s:.6f} s of "
            f"slack, worker {self.worker_id} is free at {now_s:.6f} s"
        )


class _View:
    """The scheduler as a policy sees it; one object, refreshed before each decision."""

    __slots__ = ("_arrivals", "_now_s", "memo", "profile", "queue", "worker", "workers")

    def __init__(
        self,
        queue: QueueView,
        workers: Sequence[WorkerView],
        profile: LatencyProfile,
        arrivals: list[float],
    ) -> None:
        self.queue = queue
        self.workers = workers
        self.worker = workers[0]
        self.profile = profile
        self.memo: object = None
        self._arrivals = arrivals
        self._now_s = 0.0

    def arrivals_within(self, window_s: float) -> int:
        """How many queries arrived in the last `window_s` seconds (at most the last 65,536)."""
        return len(self._arrivals) - bisect_right(self._arrivals, self._now_s - window_s)

    def show(self, worker: WorkerView, now_s: float) -> None:
        """Make this the view of `worker` at `now_s`."""
        self.worker = worker
        self._now_s = now_s


class Scheduler:
    """Decides which waiting queries run where, when and on which subnet."""

    def __init__(
        self,
        profile: LatencyProfile,
        policy: Policy,
        *,
        num_workers: int = 1,
        max_queue: int | None = None,
        drop_hopeless: bool | None = None,
        quantile: str = "p50",
    ) -> None:
        """Start empty. Raises ValueError for a count below 1, ProfileError for the quantile.

        `max_queue` bounds the waiting queries (None: no bound); `drop_hopeless` None leaves the
        choice to the policy; `quantile` of the profile is what latencies are predicted with.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, allowed 1 or more")
        _check_max_queue(max_queue)
        self.profile = profile
        self.policy = policy
        self.max_queue = max_queue
        self.num_workers = num_workers
        self.quantile = quantile
        self._drop_hopeless = drop_hopeless
        self._eligible = Eligibility(profile, quantile)
        self._queue = EdfQueue()
        self._num_wishing = 0  # waiting queries that pin a subnet or have an accuracy floor
        self._live: dict[int, Query] = {}  # waiting or running
        self._running: dict[int, tuple[Batch, float]] = {}  # with the subnet's accuracy
        self._free = list(range(num_workers))  # a heap: the lowest id works first
        self._workers = [WorkerView(i, 0.0, None) for i in range(num_workers)]
        self._arrivals: list[float] = []
        self._view = _View(self._queue, self._workers, profile, self._arrivals)
        self._next_batch_id = 0
        self._draining = False
        self._undelivered: list[Outcome] = []  # dropped in a poll in which the policy failed

    def __len__(self) -> int:
        """Return how many queries wait."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """How many batches run."""
        return len(self._running)

    @property
    def is_draining(self) -> bool:
        """Whether new queries are refused."""
        return self._draining

    @property
    def drop_hopeless(self) -> bool:
        """Whether queries that can no longer be served in time are dropped."""
        wish = self._drop_hopeless
        return self.policy.drop_hopeless if wish is None else wish

    def submit(self, query: Query, now_s: float) -> Outcome | None:
        """Admit a query (None), or return why it is refused at once.

        Refused: `draining`, `queue_full`, `unknown_subnet` (pin), `infeasible` (no subnet is
        both as pinned and as accurate as asked; or hopeless already while hopeless ones are
        dropped). Raises ValueError for an id that waits or runs already, or a deadline of NaN.
        """
        if query.query_id in self._live:
            raise ValueError(f"query_id {query.query_id} waits or runs already; ids must differ")
        if query.deadline_s != query.deadline_s:
            raise ValueError(f"deadline_s of query {query.query_id} is NaN, allowed a time or inf")
        self._note_arrival(now_s)
        reason = self._refusal(query, now_s)
        if reason:
            return _unserved(query, "rejected", reason, now_s)
        if not is_plain(query):
            self._num_wishing += 1
        self._live[query.query_id] = query
        self._queue.push(query)
        return None

    def submit_all(self, queries: Iterable[Query]) -> list[Outcome]:
        """Submit each query at its own `arrival_s`, in turn; return the refusals."""
        refusals = [self.submit(query, query.arrival_s) for query in queries]
        return [outcome for outcome in refusals if outcome is not None]

    def cancel(self, query_id: int, now_s: float, reason: str = "cancelled") -> Outcome | None:
        """Drop a waiting query; None when it is running, has ended or was never admitted."""
        query = self._live.get(query_id)
        if query is None or not self._queue.remove(query):
            return None
        return self._drop(query, reason, now_s)

    def poll(self, now_s: float, worker_id: int | None = None) -> Dispatch:
        """Decide one batch for a free worker (`worker_id`, else the free one with the lowest id).

        Without a free worker or a waiting query nothing happens. Raises PolicyError when the
        policy fails; the queries stay queued, and what this call had dropped before comes with
        the next call. Raises ValueError for an unknown worker.
        """
        if worker_id is not None and not 0 <= worker_id < self.num_workers:
            raise ValueError(f"worker {worker_id} is unknown, allowed 0 to {self.num_workers - 1}")
        if not self._free or (worker_id is not None and worker_id not in self._free):
            return _NOTHING
        self._sweep(now_s)
        batch = None
        if self._queue:
            worker = self._workers[self._free[0] if worker_id is None else worker_id]
            decision = self._decide(worker, now_s)
            if decision is not None:
                batch = self._dispatch(worker, decision, now_s)
        dropped = self._undelivered
        if batch is None and not dropped:
            return _NOTHING
        self._undelivered = []
        return Dispatch(batch, tuple(dropped))

    def complete(self, batch_id: int, now_s: float) -> tuple[Outcome, ...]:
        """End a batch: its queries are on time or late. Raises ValueError if it does not run."""
        batch, accuracy = self._end(batch_id, now_s)
        size = len(batch.queries)
        _, worker_id, subnet_id, queries, start_s, _ = batch
        new = Outcome._make
        return tuple(
            [
                new(
                    (
                        query_id,
                        "on_time" if now_s <= deadline_s else "late",
                        "",
                        arrival_s,
                        deadline_s,
                        start_s,
                        now_s,
                        subnet_id,
                        accuracy,
                        size,
                        worker_id,
                    ),
                )
                for query_id, arrival_s, deadline_s, _, _, _ in queries
            ]
        )

    def fail(self, batch_id: int, now_s: float, reason: str) -> tuple[Outcome, ...]:
        """End a batch without results, for `reason`. Raises ValueError if it does not run."""
        batch, _ = self._end(batch_id, now_s)
        return tuple(
            _unserved(query, "failed", reason, now_s)._replace(
                start_s=batch.start_s,
                subnet_id=batch.subnet_id,
                batch_size=len(batch.queries),
                worker_id=batch.worker_id,
            )
            for query in batch.queries
        )

    def next_wakeup_s(self) -> float | None:
        """Return when `poll` will act even if nothing arrives or completes, None if never.

        That is when a worker is free because the policy waits, and the most urgent query will
        turn hopeless and be dropped.
        """
        if self._undelivered:
            return self._undelivered[0].finish_s
        if not (self._free and self._queue and self.drop_hopeless):
            return None
        head = self._queue.head()
        finish_s = self._eligible.earliest_finish_s(head, 0.0)
        if finish_s is None:
            return head.arrival_s
        return head.deadline_s - finish_s + 2 * ulp(head.deadline_s)  # just past the last moment

    def reconfigure(
        self,
        *,
        policy: Policy | None = None,
        profile: LatencyProfile | None = None,
        max_queue: int | None = None,
        drop_hopeless: bool | None = None,
    ) -> None:
        """Change what is given, from the next decision on; queue and running batches stay.

        Waiting queries that no subnet of a new profile may serve are dropped as `infeasible`.
        """
        _check_max_queue(max_queue)
        if profile is not None:
            self._eligible = Eligibility(profile, self.quantile)
            self.profile = self._view.profile = profile
        if policy is not None:
            self.policy = policy
            self._view.memo = None
        if max_queue is not None:
            self.max_queue = max_queue
        if drop_hopeless is not None:
            self._drop_hopeless = drop_hopeless

    def drain(self) -> None:
        """Refuse new queries from now on; what waits is still served."""
        self._draining = True

    def _note_arrival(self, now_s: float) -> None:
        arrivals = self._arrivals
        arrivals.append(now_s)
        if len(arrivals) >= 2 * _HISTORY:
            del arrivals[:_HISTORY]

    def _refusal(self, query: Query, now_s: float) -> str:
        if self._draining:
            return "draining"
        if self.max_queue is not None and len(self._queue) >= self.max_queue:
            return "queue_full"
        if query.subnet_id is not None and query.subnet_id not in self._eligible.table:
            return "unknown_subnet"
        return "infeasible" if self._is_hopeless(query, now_s) else ""

    def _is_hopeless(self, query: Query, now_s: float) -> bool:
        finish_s = self._eligible.earliest_finish_s(query, now_s)
        return finish_s is None or (self.drop_hopeless and finish_s > query.deadline_s)

    def _sweep(self, now_s: float) -> None:
        """Drop the hopeless that could come into the next batch."""
        queue = self._queue
        if self._num_wishing:  # they may be hopeless behind a head that is not
            look_at = _LOOK_AHEAD * self.profile.max_batch_size
            for query in queue.earliest(look_at):
                if self._is_hopeless(query, now_s):
                    queue.remove(query)
                    self._give_up(query, now_s)
        if self.drop_hopeless or self._num_wishing:
            while queue and self._is_hopeless(queue.head(), now_s):
                self._give_up(queue.pop(1)[0], now_s)

    def _give_up(self, query: Query, now_s: float) -> None:
        reason = "expired" if query.deadline_s < now_s else "infeasible"
        self._undelivered.append(self._drop(query, reason, now_s))

    def _drop(self, query: Query, reason: str, now_s: float) -> Outcome:
        del self._live[query.query_id]
        self._num_wishing -= not is_plain(query)
        return _unserved(query, "dropped", reason, now_s)

    def _decide(self, worker: WorkerView, now_s: float) -> Decision | None:
        view = self._view
        view.show(worker, now_s)
        try:
            decision = self.policy.decide(view, now_s)
        except Exception as error:
            raise PolicyError(self.policy.name, f"raised {error!r}", view, now_s) from error
        if decision is None:
            return None
        fault = self._fault(decision)
        if fault:
            raise PolicyError(self.policy.name, fault, view, now_s)
        view.memo = decision.memo
        return decision

    def _fault(self, decision: object) -> str:
        """Return what is wrong with a decision, empty when it can be carried out."""
        if not isinstance(decision, Decision):
            return f"returned {decision!r}, allowed a Decision or None"
        if decision.subnet_id not in self._eligible.table:
            known = ", ".join(self._eligible.table)
            return f"decided on unknown subnet {decision.subnet_id!r}, allowed {known}"
        largest = self.profile.max_batch_size
        if type(decision.batch_size) is not int or not 1 <= decision.batch_size <= largest:
            return f"decided on batch size {decision.batch_size!r}, allowed 1 to {largest}"
        return ""

    def _dispatch(self, worker: WorkerView, decision: Decision, now_s: float) -> Batch:
        subnet_id, size, _ = decision
        if self._num_wishing:
            subnet_id, queries = self._take_eligible(subnet_id, size, now_s)
        else:
            queries = self._queue.pop(size)
        latency_s = self._eligible.table[subnet_id][len(queries)]
        worker_id = worker.worker_id
        batch = Batch(self._next_batch_id, worker_id, subnet_id, queries, now_s, latency_s)
        self._next_batch_id += 1
        self._running[batch.batch_id] = (batch, self._eligible.accuracy[subnet_id])
        self._workers[worker_id] = WorkerView(worker_id, now_s + latency_s, subnet_id)
        if self._free[0] == worker_id:
            heappop(self._free)
        else:
            self._free.remove(worker_id)
            heapify(self._free)
        return batch

    def _take_eligible(
        self, subnet_id: str, size: int, now_s: float
    ) -> tuple[str, tuple[Query, ...]]:
        eligible = self._eligible
        head = self._queue.head()
        if not eligible.accepts(head, subnet_id):
            legal = eligible.fastest(head, size)
            assert legal is not None, "a head without a legal subnet was swept"
            subnet_id = legal
            row = eligible.table[subnet_id]
            fitting = (b for b in range(size, 0, -1) if now_s + row[b] <= head.deadline_s)
            size = next(fitting, size)
        queries = self._queue.pop_where(
            size, _LOOK_AHEAD * size, lambda query: eligible.accepts(query, subnet_id)
        )
        self._num_wishing -= sum(not is_plain(query) for query in queries)
        return subnet_id, queries

    def _end(self, batch_id: int, now_s: float) -> tuple[Batch, float]:
        ended = self._running.pop(batch_id, None)
        if ended is None:
            running = ", ".join(map(str, self._running)) or "none"
            raise ValueError(f"batch {batch_id} does not run (it ended or never was); {running} do")
        batch = ended[0]
        live = self._live
        for query in batch.queries:
            del live[query.query_id]
        worker_id = batch.worker_id
        self._workers[worker_id] = WorkerView(worker_id, now_s, batch.subnet_id)
        heappush(self._free, worker_id)
        return ended


def _check_max_queue(max_queue: int | None) -> None:
    if max_queue is not None and max_queue < 1:
        raise ValueError(f"max_queue is {max_queue}, allowed 1 or more, or None for no bound")


def _unserved(query: Query, status: Status, reason: str, now_s: float) -> Outcome:
    return Outcome(
        query_id=query.query_id,
        status=status,
        reason=reason,
        arrival_s=query.arrival_s,
        deadline_s=query.deadline_s,
        start_s=None,
        finish_s=now_s,
        subnet_id=None,
        accuracy=0.0,
        batch_size=0,
    )
