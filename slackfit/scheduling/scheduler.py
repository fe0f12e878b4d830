"""The scheduler: an EDF queue, a policy and worker slots. No clock, no thread, no I/O.

A driver calls it with the time of its own clock: `slackfit.simulation` with virtual time, the
server with real time. Both call `submit` and then `poll` at an arrival, `complete` and then
`poll` at a completion, so the same calls give the same decisions. Calls must not overlap (a
driver with threads holds a lock), and `now_s` must not run backwards.

Every admitted query gets exactly one `Outcome`: from `submit` (refused), `poll` (dropped),
`cancel`, `complete` or `fail`.

The policy decides for the most urgent query. Where constraints (a pin, a floor on accuracy) stand
against its decision, `WaitingQueries.pop_batch` says what happens; queries that may not run on
the chosen subnet stay queued in their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, inf
from typing import NamedTuple

from slackfit.errand import Errand
from slackfit.policy import ALONE, DeviceLoad, Policy, WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Batch, Outcome, Query
from slackfit.scheduling.correction import LatencyCorrection
from slackfit.scheduling.decide import PolicyError, SchedulerView, decide
from slackfit.scheduling.outcomes import executed, failed, unserved
from slackfit.scheduling.running import RunningBatches
from slackfit.scheduling.spare import has_time
from slackfit.scheduling.standing import Standing
from slackfit.scheduling.triage import Triage
from slackfit.scheduling.waiting import WaitingQueries
from slackfit.scheduling.workers import Workers
from slackfit.spreading import Outlook

__all__ = ["Dispatch", "PolicyError", "Scheduler"]


class Dispatch(NamedTuple):
    """What `poll` did: a batch to run (or None), and the queries that left without running."""

    batch: Batch | None
    dropped: tuple[Outcome, ...]


_NOTHING = Dispatch(None, ())


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
        correct_latency: bool = False,
        triage: bool | None = None,
        tenant_shares: Mapping[str, float] | None = None,
        max_tenant_queue: int | None = None,
    ) -> None:
        """Start empty. Raises ValueError for a count below 1, ProfileError for the quantile.

        `max_queue` bounds the waiting samples (None: no bound), `max_tenant_queue` those of each
        tenant; `tenant_shares` are fractions of the device's time that tenants have at least when
        not all can be served (`Standing`); `drop_hopeless` None leaves the choice to the policy;
        `quantile` of the profile is what latencies are predicted with; `correct_latency` corrects
        them by what completed batches took (`LatencyCorrection`); `triage` gives up, while hopeless
        ones are dropped, the queries that only batches too small to be worth their time could save
        (`Triage`); None leaves that to the policy too.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, allowed 1 or more")
        self._quantile = quantile
        self._correction = LatencyCorrection(profile, quantile) if correct_latency else None
        profile = profile if self._correction is None else self._correction.profile
        self._wants_triage = triage
        self._triage = Triage(profile, quantile)
        self._standing = Standing(tenant_shares)
        self._max_tenant_queue = max_tenant_queue
        self._waiting = WaitingQueries(profile, quantile, self._standing)
        self._workers = Workers(num_workers)
        self._profile = profile  # the view's is the part of it for the head's work
        self._view = SchedulerView(self._waiting.edf, self._workers.views, profile)
        self._live: dict[int, Query] = {}  # waiting or running
        self._running = RunningBatches(num_workers)
        self._num_dispatched = 0
        self._dropped: list[Outcome] = []  # not yet handed out by `poll`
        self._draining = False
        self._wants_drop: bool | None = None
        self._max_queue: int | None = None
        self.reconfigure(policy=policy, max_queue=max_queue, drop_hopeless=drop_hopeless)

    def __len__(self) -> int:
        """Return how many queries wait."""
        return len(self._waiting.edf)

    @property
    def num_samples(self) -> int:
        """How many samples wait: a query may hold several."""
        return self._waiting.num_samples

    @property
    def profile(self) -> LatencyProfile:
        """The profile that latencies are predicted with, as corrected so far."""
        return self._profile

    @property
    def offered(self) -> LatencyProfile:
        """The profile that it was given, uncorrected."""
        return self.profile if self._correction is None else self._correction.given

    @property
    def latency_factor(self) -> float | None:
        """How much slower than profiled batches are taken to be; None: nothing is corrected."""
        return None if self._correction is None else self._correction.factor

    @property
    def latency_delay_s(self) -> float | None:
        """What is added to the factor's latency, as corrected for; None like the factor."""
        return None if self._correction is None else self._correction.delay_s

    @property
    def policy(self) -> Policy:
        """The policy that decides."""
        return self._policy

    @property
    def num_workers(self) -> int:
        """How many worker slots there are."""
        return len(self._workers)

    @property
    def num_running(self) -> int:
        """How many batches run, or are next on a worker that runs another."""
        return len(self._running)

    @property
    def max_queue(self) -> int | None:
        """How many queries may wait, None for no bound."""
        return self._max_queue

    @property
    def tenant_settings(self) -> dict[str, object]:
        """What is set for tenants, by name; nothing that was left out."""
        shares, bound = self._standing.shares, self._max_tenant_queue
        given = {"tenant_shares": shares, "max_tenant_queue": bound}
        return {name: value for name, value in given.items() if value}

    @property
    def head_deadline_s(self) -> float | None:
        """When the most urgent waiting query is due, None when none waits."""
        return self._waiting.edf.head().deadline_s if self._waiting.edf else None

    def load(self, now_s: float) -> DeviceLoad:
        """Return what its queries ask of a worker that it shares with others."""
        rate_qps, least_s = self._view.rate_qps(now_s), self._triage.least_s
        is_active = bool(self._waiting.edf) or rate_qps > 0.0
        return DeviceLoad(
            int(is_active),
            self.num_samples * least_s,
            rate_qps * least_s,
            self._view.tightest_slo_s if is_active else inf,
        )

    def outlook(self, now_s: float) -> Outlook:
        """Return when one more query could be answered, and how much can be served, at the most.

        As predicted, on the fastest subnets, behind what waits and runs.
        """
        fastest, num_workers = self.profile.fastest(self._quantile), len(self._workers)
        free_s = min([view.busy_until_s for view in self._workers.views]) - now_s
        count = ceil((self.num_samples + 1) / num_workers)
        finish_s = max(0.0, free_s) + fastest.duration_s(count)
        return Outlook(finish_s, num_workers * fastest.capacity_qps)

    def has_time(
        self, errand: Errand, now_s: float, others: DeviceLoad, after: LatencyProfile | None = None
    ) -> bool:
        """Whether the worker is idle and an errand costs no query its deadline, see `spare`.

        `after` is the profile, uncorrected, of what runs after it (None: the present one).
        """
        if self._waiting.edf or self._running:
            return False
        if after is not None and self._correction is not None:
            after = self._correction.corrected(after)
        fastest = (after or self._profile).fastest(self._quantile)
        return has_time(errand, fastest, self._view, now_s, others)

    def waiting(self) -> tuple[Query, ...]:
        """Return the waiting queries, most urgent first."""
        return tuple(self._waiting.edf)

    @property
    def drop_hopeless(self) -> bool:
        """Whether queries that can no longer be served in time are dropped."""
        return self._drops

    @property
    def triage(self) -> bool:
        """Whether queries are given up that only batches too small for their time could save."""
        return self._does_triage

    @property
    def is_draining(self) -> bool:
        """Whether new queries are refused."""
        return self._draining

    def submit(self, query: Query, now_s: float) -> Outcome | None:
        """Admit a query (None), or return why it is refused at once.

        Refused: `draining`, `unknown_subnet` (pin), `infeasible` (no subnet is both as pinned and
        as accurate as asked, or runs so many samples at once; or hopeless already, while those are
        dropped), `queue_full`. In a full queue a query that is due earlier, or of a higher
        standing, takes the place of the latest-due of the lowest standing, which leaves as
        `queue_full` with the next `poll`.
        Raises ValueError for an id that waits or runs already, or a deadline of NaN.
        """
        if query.query_id in self._live:
            raise ValueError(f"query_id {query.query_id} waits or runs already; ids must differ")
        if query.deadline_s != query.deadline_s:
            raise ValueError(f"deadline_s of query {query.query_id} is NaN, allowed a time or inf")
        self._view.note_arrivals((now_s,) * query.samples)
        reason = self._refusal(query, now_s)
        if not reason and self._max_queue is not None:
            reason = "" if self._make_room(query, now_s) else "queue_full"
        if reason:
            return unserved(query, "rejected", reason, now_s)
        self._live[query.query_id] = query
        self._waiting.push(query)
        return None

    def submit_all(self, queries: Sequence[Query]) -> list[Outcome]:
        """Submit each query at its own `arrival_s`, in turn; return the refusals.

        The same as `submit` in a loop, and much faster where all are plain and admitted.
        """
        fresh = {query.query_id: query for query in queries}
        num_then = self.num_samples + len(queries)
        room = self._max_queue is None or num_then <= self._max_queue
        if (
            room
            and not self._draining
            and len(fresh) == len(queries)
            and self._live.keys().isdisjoint(fresh)
            and self._waiting.can_take_unseen(queries, also_late=self._drops)
        ):
            self._view.note_arrivals([query.arrival_s for query in queries])
            self._live |= fresh
            self._waiting.extend(queries)
            return []
        refusals = [self.submit(query, query.arrival_s) for query in queries]
        return [outcome for outcome in refusals if outcome is not None]

    def cancel(self, query_id: int, now_s: float, reason: str = "cancelled") -> Outcome | None:
        """Drop a waiting query; None when it is running, has ended or was never admitted."""
        query = self._live.get(query_id)
        if query is None or not self._waiting.remove(query):
            return None
        del self._live[query_id]
        return unserved(query, "dropped", reason, now_s)

    def poll(
        self, now_s: float, worker_id: int | None = None, others: DeviceLoad = ALONE
    ) -> Dispatch:
        """Decide one batch for a free worker (`worker_id`, else the free one with the lowest id).

        `others` is what other models ask of the workers, whose queries are not in this queue.
        Without a free worker or a waiting query nothing happens. Raises PolicyError when the
        policy fails; the queries stay queued, and what this call had dropped before comes with
        the next call. Raises ValueError for an unknown worker.
        """
        worker = self._workers.free(worker_id)
        if worker is None:
            return self._handed_out(None)
        return self._handed_out(self._decided(worker, now_s, now_s, others))

    def fills_another(self, worker_id: int | None = None) -> bool:
        """Whether a busy worker should be given its next batch before the present one ends.

        That is when it runs, or has next, a full batch (the largest, or one that left others
        behind), and as many samples wait as that one has: waiting would not make the next one
        larger. False for a free worker, which `poll` serves. None: of the worker that is free next.
        Raises ValueError for an unknown worker.
        """
        return self._running.fills_another(
            self._busy(worker_id).worker_id, self.num_samples, self._profile.max_batch_size
        )

    def poll_behind(
        self, now_s: float, worker_id: int | None = None, others: DeviceLoad = ALONE
    ) -> Dispatch:
        """Decide the batch that a busy worker goes on with when it has ended what it has.

        As `poll`, at the moment when the worker should be free: slack, what is hopeless and the
        batch's `start_s` are of then. It begins when the one before really ends, and its latency
        counts from there. Nothing happens unless `fills_another`, which raises as this does.
        """
        worker = self._busy(worker_id)
        if not self.fills_another(worker.worker_id):
            return self._handed_out(None)
        start_s = max(now_s, worker.busy_until_s)
        return self._handed_out(self._decided(worker, start_s, now_s, others))

    def complete(self, batch_id: int, now_s: float) -> tuple[Outcome, ...]:
        """End a batch: its queries are on time or late. Raises ValueError if it does not run."""
        batch, accuracy = self._end(batch_id, now_s)
        if self._correction is not None:
            latency_s = now_s - batch.start_s
            corrected = self._correction.observe(
                batch.subnet_id, batch.num_samples, latency_s, batch.queries
            )
            if corrected is not None:
                self._use(corrected)
        return executed(batch, accuracy, now_s)

    def fail(self, batch_id: int, now_s: float, reason: str) -> tuple[Outcome, ...]:
        """End a batch without results, for `reason`. Raises ValueError if it does not run."""
        return failed(self._end(batch_id, now_s)[0], reason, now_s)

    def retire(self, worker_id: int) -> None:
        """Take a worker out of service for good. Raises ValueError unless it is free."""
        if self._workers.free(worker_id) is None:
            raise ValueError(f"worker {worker_id} is busy or retired; fail its batch first")
        self._workers.retire(worker_id)

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[Outcome, ...]:
        """Drop everything that waits, most urgent first."""
        ids = [query.query_id for query in self._waiting.edf]
        return tuple(filter(None, (self.cancel(i, now_s, reason) for i in ids)))

    def next_wakeup_s(self) -> float | None:
        """Return when `poll` will act even if nothing arrives or completes, None if never.

        That is when a worker is free because the policy waits, and the most urgent query turns
        hopeless and is dropped; or at once, when a failed `poll` left dropped queries to hand out.
        """
        if self._dropped:
            return self._dropped[0].finish_s
        if not (self._drops and self._waiting.edf and self._workers.free()):
            return None
        return self._waiting.hopeless_from_s()

    def reconfigure(
        self,
        *,
        policy: Policy | None = None,
        profile: LatencyProfile | None = None,
        max_queue: int | None = None,
        drop_hopeless: bool | None = None,
    ) -> None:
        """Change what is given, from the next decision on; queue and running batches stay.

        Waiting queries that no subnet of a new profile may serve are dropped as `infeasible`; what
        was learned of the device's latencies is carried over to it.
        Raises ValueError for a `max_queue` below 1, and then changes nothing.
        """
        if max_queue is not None and max_queue < 1:
            raise ValueError(f"max_queue is {max_queue}, allowed 1 or more, or None for no bound")
        if profile is not None:
            if self._correction is not None:
                self._correction = LatencyCorrection(profile, self._quantile, self._correction)
                profile = self._correction.profile
            self._use(profile)
        if policy is not None:
            self._policy = policy
            self._view.memo = None
        if max_queue is not None:
            self._max_queue = max_queue
        if drop_hopeless is not None:
            self._wants_drop = drop_hopeless
        given = self._wants_drop
        self._drops = self._policy.drop_hopeless if given is None else given
        given = self._wants_triage
        triage = getattr(self._policy, "triage", False) if given is None else given
        self._does_triage = self._drops and triage

    def drain(self) -> None:
        """Refuse new queries from now on; what waits is still served."""
        self._draining = True

    def _use(self, profile: LatencyProfile) -> None:
        self._waiting.use(profile)
        self._triage = Triage(profile, self._quantile)
        self._profile = self._view.profile = profile

    def _refusal(self, query: Query, now_s: float) -> str:
        if self._draining:
            return "draining"
        if query.subnet_id is not None and not self._waiting.knows(query.subnet_id):
            return "unknown_subnet"
        hopeless = self._waiting.is_hopeless(query, now_s, also_late=self._drops)
        return "infeasible" if hopeless else ""

    def _busy(self, worker_id: int | None) -> WorkerView:
        return self._workers.next_free() if worker_id is None else self._workers.view(worker_id)

    def _decided(
        self, worker: WorkerView, start_s: float, now_s: float, others: DeviceLoad
    ) -> Batch | None:
        """Return the batch that a worker begins at `start_s`, decided now; None for none."""
        self._drop(self._waiting.pop_hopeless(start_s, also_late=self._drops), now_s)
        view = self._view
        view.worker = worker
        view.now_s = start_s
        view.others = others
        view.queue = self._waiting.queue
        view.wishes = self._waiting.wishes(start_s)
        if self._waiting.edf:
            view.note_head()
        if self._does_triage and self._waiting.edf:
            self._give_up(start_s, now_s)
            view.queue = self._waiting.queue
        if not self._waiting.edf:
            return None
        view.profile = self._waiting.profile_of_head(self._profile)
        decision = decide(self._policy, view)
        if decision is None:
            return None
        if self._drops and decision.drop_before_s > -inf:
            self._drop(self._waiting.pop_due_before(decision.drop_before_s), now_s)
            if not self._waiting.edf:
                return None
        subnet_id, queries = self._waiting.pop_batch(decision, start_s)
        return self._dispatch(worker.worker_id, subnet_id, queries, start_s, now_s)

    def _give_up(self, start_s: float, now_s: float) -> None:
        ranks = self._standing.ranks(now_s, self.num_workers)
        lost = self._triage.given_up(self._view, ranks, start_s)
        if lost:
            self._waiting.remove_all(lost)
            self._drop(lost, now_s)

    def _make_room(self, query: Query, now_s: float) -> bool:
        """Evict what stands behind `query`, if the queue has no room for it otherwise.

        Return whether it has room then; if not, nothing is evicted.
        """
        assert self._max_queue is not None, "without a bound there is room"
        own, bound = self._standing.samples[query.tenant], self._max_tenant_queue
        of_tenant = 0 if bound is None or not query.tenant else own + query.samples - bound
        of_all = self.num_samples + query.samples - self._max_queue
        if of_tenant <= 0 and of_all <= 0:
            return True
        ranks = self._standing.ranks(now_s, self.num_workers)
        evicted = self._waiting.behind(query, ranks, of_tenant=of_tenant, of_all=of_all)
        if evicted is None:
            return False
        for victim in evicted:
            self._waiting.remove(victim)
            del self._live[victim.query_id]
            self._dropped.append(unserved(victim, "dropped", "queue_full", now_s))
        return True

    def _handed_out(self, batch: Batch | None) -> Dispatch:
        """Return a dispatch of `batch` and of everything that was dropped since the last one."""
        if not self._dropped:
            return Dispatch(batch, ()) if batch else _NOTHING
        dropped, self._dropped = self._dropped, []
        return Dispatch(batch, tuple(dropped))

    def _drop(self, queries: Iterable[Query], now_s: float) -> None:
        for query in queries:
            del self._live[query.query_id]
            reason = "expired" if query.deadline_s < now_s else "infeasible"
            self._dropped.append(unserved(query, "dropped", reason, now_s))

    def _dispatch(
        self,
        worker_id: int,
        subnet_id: str,
        queries: tuple[Query, ...],
        start_s: float,
        now_s: float,
    ) -> Batch:
        batch_id = self._num_dispatched
        self._num_dispatched += 1
        num_samples = sum([query.samples for query in queries])
        latency_s = self._waiting.latency_s(subnet_id, queries, num_samples)
        batch = Batch(batch_id, worker_id, subnet_id, queries, start_s, latency_s)
        self._standing.charge(queries, latency_s, num_samples, now_s)
        self._running.add(batch, self._waiting.accuracy(subnet_id), self.num_samples)
        self._workers.occupy(worker_id, start_s + latency_s, subnet_id)
        return batch

    def _end(self, batch_id: int, now_s: float) -> tuple[Batch, float]:
        batch, accuracy, until_s = self._running.end(batch_id, now_s)
        for query in batch.queries:
            del self._live[query.query_id]
        if until_s is None:
            self._workers.release(batch.worker_id, now_s, batch.subnet_id)
        else:
            self._workers.prolong(batch.worker_id, until_s)
        return batch, accuracy
