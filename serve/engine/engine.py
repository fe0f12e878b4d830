"""The engine: one scheduler and one executor, driven in real time.

The door (an asyncio loop) submits queries; one device thread repeats `step`: poll the scheduler,
gather the payloads, launch the batch (and one behind it, where the device computes by itself),
complete it, and hand all replies of the batch to the loop with one wake-up. The queue, the policy
and the device share a process on purpose (a hop between processes costs as much as a small batch),
and there is nothing of Ray in here.

`step` takes its time from an injected clock and needs no thread, so a test drives the very same
code with a virtual clock. Whatever happens, every query ends exactly once: an exception of the
executor fails the query that causes it, a device that hangs fails all open ones, and a policy
that breaks its contract is replaced by `fixed:smallest`, so that the queue is still served; all of
it is logged and shown in `status`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from serve.engine.answer_loop import AnswerLoop, settle
from serve.engine.device_turn import DeviceTurn
from serve.engine.guarded import Guarded
from serve.engine.job import EndedQuery, EngineStatus, Job, Ledger, State, Ticket
from serve.engine.open_request import OnEnd, OpenRequest, Withdraw, replies_of
from serve.engine.query_ends import end_batch, end_hopeless, end_waiting
from serve.engine.reply import Reply, RequestOptions
from serve.engine.runner import BatchRunner
from serve.engine.served_engine import EarliestAnswer
from serve.engine.under_way import BatchUnderWay, UnderWay
from serve.engine.upkeep import Upkeep
from serve.engine.watchdog import Watchdog
from slackfit.policies import create_policy
from slackfit.policy import DeviceLoad, Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.outcomes import unserved
from slackfit.scheduling.scheduler import Dispatch, PolicyError, Scheduler

if TYPE_CHECKING:
    from subnetact.executor import Executor

logger = logging.getLogger(__name__)

FALLBACK_POLICY = "fixed:smallest"
HUNG_AFTER_S = 10.0
PROBE_AFTER_S = 10.0
_DRAIN_POLL_S = 0.005
_MIN_WAIT_S = 1e-4  # a policy that asks to be woken in the past must not spin the device thread


class Engine:
    """Serves queries on one device; see the module for the threads involved.

    `observer` is called with every reply, on the thread that delivers it; `on_decision` with the
    seconds that the policy took to compose a batch, on the device thread. `turn` is given to
    engines that share a device. A device that had nothing to do for `probe_after_s` is given a
    sample of zeros, so that one that fails or hangs is known before the next query comes.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        *,
        clock: Callable[[], float] = time.monotonic,
        observer: Callable[[Reply], None] | None = None,
        on_decision: Callable[[float], None] | None = None,
        hung_after_s: float = HUNG_AFTER_S,
        probe_after_s: float = PROBE_AFTER_S,
        turn: DeviceTurn | None = None,
    ) -> None:
        self.clock = clock
        self._watchdog = Watchdog(hung_after_s)
        self._under_way = UnderWay(self._watchdog)
        self._probe_after_s = probe_after_s
        self._watch: asyncio.Task[None] | None = None
        self._scheduler = scheduler
        self._state: State = "starting"
        self._fallback = ""
        self._fault = ""
        self._ledger = Ledger(observer)
        self._on_decision = None if on_decision is None else Guarded(on_decision)
        self._runner = BatchRunner(executor, clock)
        self._ids = itertools.count()
        self._slot = (turn or DeviceTurn()).slot(self._due_s, self._load)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._upkeep = Upkeep(scheduler, self._runner, self._watchdog, lock=self._lock, clock=clock)
        self._is_dirty = False  # something changed since the last poll
        self._is_stopping = False
        self._answers = AnswerLoop()
        self._thread: threading.Thread | None = None

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Warm the executor up on the device thread, then take queries from this event loop."""
        warm: asyncio.Future[None] = self._answers.bind().create_future()
        self._thread = threading.Thread(
            target=self._device_main, args=(warm,), name="device", daemon=True
        )
        self._thread.start()
        await warm
        self._watch = asyncio.ensure_future(self._watch_device())

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new queries, and those that cannot end in time; finish the others.

        Returns whether all ended in time.
        """
        with self._lock:
            if self._state == "stopped":
                return not self._ledger.open
            self._state = "draining"
            self._scheduler.drain()
            ended = self._refuse_hopeless(self.clock() + timeout_s)
            self._touch()
        self._ledger.deliver(ended)
        give_up_s = self.clock() + timeout_s
        while self._ledger.open and self.clock() < give_up_s:
            await asyncio.sleep(_DRAIN_POLL_S)
        return not self._ledger.open

    async def stop(self, timeout_s: float = 5.0) -> None:
        """End the device thread; whatever is still queued is answered as dropped, `draining`."""
        with self._lock:
            self._is_stopping = True
            self._state = "stopped"
            self._touch()
        if self._watch is not None:
            self._watch.cancel()
        if self._thread is not None and not self._fault:  # a hung thread is never joined
            await asyncio.to_thread(self._thread.join, timeout_s)
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                self._fault = self._fault or "the device did not end its batch in time"
            ended = end_waiting(self._scheduler, self._ledger, self.clock())
            ended += self._ledger.abandon("device_failed", self.clock())
        self._ledger.deliver(ended)

    # --- queries ---------------------------------------------------------------------------------

    async def infer(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions
    ) -> list[Reply]:
        """Serve the samples (B, ...) of one request; return a reply for each query.

        If one is refused the others are withdrawn. Cancelling the awaiting task (the client has
        gone) withdraws what is still queued. Raises ValueError for samples that the executor
        does not take.
        """
        return await replies_of(
            lambda end: self.open_request(samples, arrival_s=arrival_s, options=options, on_end=end)
        )

    def open_request(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions, on_end: OnEnd
    ) -> Withdraw:
        """Serve a request as `infer` does, for who has no task; in the engine's event loop.

        `on_end` may be called before this returns. Raises ValueError as `infer`.
        """
        request, hard_s = OpenRequest(on_end, self.withdraw), options.hard_deadline_s
        job = self.submit(samples, arrival_s=arrival_s, options=options, on_done=request.done)
        request.opened(job, None if hard_s is None else hard_s - self.clock())
        return request.withdraw

    def submit(
        self,
        samples: np.ndarray,
        *,
        arrival_s: float,
        options: RequestOptions,
        on_done: Callable[[Job], None],
    ) -> Job:
        """Queue a request (B, ...) as one query; a refusal is answered before this returns.

        Only what is more than a batch holds is several.
        """
        executor, largest = self._runner.executor, self._scheduler.profile.max_batch_size
        parts = [samples]
        if len(samples) > largest:
            parts = [samples[start : start + largest] for start in range(0, len(samples), largest)]
        slots = [executor.stage(part) for part in parts]
        # Samples that differ in work say so before anything is decided.
        work_of = getattr(executor, "work_of", None)
        refused: list[EndedQuery] = []
        with self._lock:
            now_s = self.clock()
            job = Job(slots, on_done)
            for index, own in enumerate(parts):
                query = Query(
                    next(self._ids),
                    arrival_s,
                    options.deadline_s,
                    options.min_accuracy,
                    options.query_class,
                    options.subnet_id,
                    samples=len(own),
                    work=1.0 if work_of is None else work_of(slots[index]),
                    tenant=options.tenant,
                    given_deadline_s=options.given_deadline_s,
                )
                ticket = Ticket(job, index, query)
                outcome = self._admit(query, now_s)
                if outcome is None:
                    self._ledger.admit(ticket)
                else:
                    refused.append(EndedQuery(ticket, Reply(outcome, tenant=query.tenant)))
            self._touch_soon()
        self._ledger.deliver(refused)
        if refused and not job.is_done:
            self.withdraw(job, "cancelled")
        return job

    def refuse(
        self, reason: str, *, arrival_s: float, options: RequestOptions, samples: int
    ) -> Reply:
        """End a request at the door, before anything is queued; counted like any other end."""
        query = Query(
            next(self._ids),
            arrival_s,
            options.deadline_s,
            samples=samples,
            tenant=options.tenant,
            given_deadline_s=options.given_deadline_s,
        )
        reply = Reply(unserved(query, "rejected", reason, self.clock()), tenant=options.tenant)
        self._ledger.note(reply)
        return reply

    def withdraw(self, job: Job, reason: str) -> None:
        """End what is still queued of a request as dropped, for `reason`.

        What runs goes on, and is answered when it ends; but nobody waits for what has `expired`: it
        ends now, and its rows are dropped when they come.
        """
        ended: list[EndedQuery] = []
        with self._lock:
            now_s = self.clock()
            for query_id in job.query_ids:
                ticket = self._ledger.open.get(query_id)
                if ticket is None:
                    continue
                outcome = self._scheduler.cancel(query_id, now_s, reason)
                if outcome is None and reason == "expired" and self._under_way.holds(query_id):
                    outcome = unserved(ticket.query, "dropped", reason, now_s)
                if outcome is not None:
                    ended.append(self._ledger.end(outcome))
        self._ledger.deliver(ended)

    # --- control ---------------------------------------------------------------------------------

    def reconfigure(
        self, *, policy: Policy | None = None, profile: LatencyProfile | None = None
    ) -> None:
        """Switch the policy or the offered subnets between two batches; the queue stays."""
        with self._lock:
            planned = None if profile is None else self._upkeep.offer(profile)
            self._scheduler.reconfigure(policy=policy, profile=planned)
            if policy is not None:
                self._fallback = ""
            self._touch()

    @property
    def policy_name(self) -> str:
        """The name of the policy in force."""
        return self._scheduler.policy.name

    @property
    def profile(self) -> LatencyProfile:
        """The offered subnets, as profiled."""
        return self._upkeep.offered

    @property
    def drops_hopeless(self) -> bool:
        """Whether what cannot be in time is refused, not served late."""
        return self._scheduler.drop_hopeless

    def scheduler_settings(self) -> dict[str, int | bool | None]:
        """Return how the scheduler is set, whatever of it was left to the policy."""
        with self._lock:
            scheduler = self._scheduler
            return {
                "max_queue": scheduler.max_queue,
                "drop_hopeless": scheduler.drop_hopeless,
                "triage": scheduler.triage,
                "correct_latency": scheduler.latency_factor is not None,
            }

    def status(self) -> EngineStatus:
        """Return a snapshot of the engine's state."""
        with self._lock:
            return EngineStatus(
                self._state,
                self._scheduler.policy.name,
                self._scheduler.num_samples,
                self._scheduler.num_running,
                self._fallback,
                self._fault,
                dict(self._ledger.counts),
                self._scheduler.latency_factor,
                self._scheduler.latency_delay_s,
            )

    def backlog(self) -> tuple[tuple[Query, ...], float]:
        """Return the waiting queries, most urgent first, and when the device is free."""
        with self._lock:
            return self._scheduler.waiting(), self._under_way.free_at_s(self.clock())

    def device_counts(self) -> Mapping[str, int]:
        """Return what the executor counted and holds, see `Executor.counts`."""
        return self._runner.executor.counts()

    def earliest_answer(self) -> EarliestAnswer:
        """Predict the earliest answer to a query that would arrive now, on the fastest subnet."""
        with self._lock:
            fastest = self._scheduler.profile.fastest()
            outlook = self._scheduler.outlook(self.clock())
            return EarliestAnswer(outlook.finish_s, fastest.latency_s[1])

    # --- the device side -------------------------------------------------------------------------

    def step(self) -> bool:
        """Poll once, launch the batch if there is one, complete it. Return whether there was one.

        Where the executor computes by itself, and what waits fills another batch, that one is
        launched behind it first (`Scheduler.poll_behind`); the next step completes it.
        """
        if not self._under_way and not self._launch():
            return False
        while len(self._under_way) < self._runner.num_under_way and self._launch():
            pass
        return self._complete()

    def _launch(self) -> bool:
        """Launch the next batch, if there is to be one; behind what is under way, if anything."""
        others = self._slot.others()  # asks their engines, so before our own lock
        with self._lock:
            if self._under_way and not self._may_queue(others):
                return False
            self._is_dirty = False
            self._upkeep.replan()
            polled_s = self.clock()
            dispatch = self._poll(polled_s, others)
            decision_s = self.clock() - polled_s
            ended = [self._ledger.end(outcome) for outcome in dispatch.dropped]
            batch = dispatch.batch
            tickets = [self._ledger.open[q.query_id] for q in batch.queries] if batch else []
            if batch is not None:
                self._under_way.add(BatchUnderWay(batch, decision_s))
        self._hand_over(ended)
        if batch is not None:
            self._runner.launch(batch, tickets)
        return batch is not None

    def _complete(self) -> bool:
        """Wait for the oldest batch under way and end it; False if that was too late."""
        run = self._runner.result()
        with self._lock:
            now_s = self.clock()
            batch, decision_s = self._under_way.end_oldest(now_s)
            if self._fault:  # too late: its queries were answered as failed
                return False
            ended = end_batch(self._scheduler, self._ledger, batch, run, now_s)
        self._hand_over(ended)
        if self._on_decision is not None:
            self._on_decision(decision_s)
        return True

    def _device_main(self, warm: asyncio.Future[None]) -> None:
        try:
            self._runner.executor.warm_up()
        except Exception as error:  # handed to whoever started the engine
            self._answers.call(settle, warm, error)
            return
        self._upkeep.catch_up()
        with self._lock:
            if self._state == "starting":
                self._state = "ready"
        self._answers.call(settle, warm, None)
        try:
            while not self._is_stopping:
                with self._slot:
                    self._slot.comes_back = has_run = self.step()
                    while self._under_way:  # the next one already is: the device stays ours
                        self._slot.keep()
                        self.step()
                    if not has_run:  # there is a gap: for what no query asked for
                        has_run = self._upkeep.run_errand(self._slot.others)
                if not has_run and self._waited_long():
                    with self._slot:
                        self._upkeep.probe(self._is_needed)
        except Exception as error:  # a bug of ours: say so to every client, and stay down
            logger.exception("the device thread ended")
            self._hand_over(self._give_up(f"the device thread ended: {type(error).__name__}"))
        finally:
            self._slot.leave()

    async def _watch_device(self) -> None:
        """Answer everyone once the device hangs; the loop is free, so this runs on time."""
        while not self._fault:
            await asyncio.sleep(self._watchdog.hung_after_s / 4)
            with self._lock:
                is_hung = self._watchdog.is_hung(self.clock())
            if is_hung:
                logger.error("the device hangs: every open query fails, no more are taken")
                self._ledger.deliver(self._give_up("the device hangs"))
                self._slot.lose()

    def _wake_device(self) -> None:
        with self._lock:
            self._wake.notify()

    def _due_s(self) -> float | None:
        with self._lock:
            return self._scheduler.head_deadline_s

    def _load(self) -> DeviceLoad:
        with self._lock:
            return self._scheduler.load(self.clock())

    def _give_up(self, fault: str) -> list[EndedQuery]:
        with self._lock:
            self._fault = fault
            self._state = "stopped"
            self._is_stopping = True
            return self._ledger.abandon("device_failed", self.clock())

    def _is_needed(self) -> bool:
        return self._is_dirty or self._is_stopping

    def _waited_long(self) -> bool:
        """Wait for something to do. Return whether the device was idle for so long instead."""
        with self._wake:
            if self._is_needed():
                return False
            wakeup_s = self._scheduler.next_wakeup_s()
            if wakeup_s is None:
                return not self._wake.wait(self._probe_after_s)
            self._wake.wait(max(_MIN_WAIT_S, wakeup_s - self.clock()))
            return False

    # --- with the lock held ----------------------------------------------------------------------

    def _touch(self) -> None:
        self._is_dirty = True
        self._wake.notify()

    def _touch_soon(self) -> None:
        self._is_dirty = True  # seen by a thread that does not wait
        if not self._answers.wake_soon(self._wake_device):
            self._wake.notify()

    def _admit(self, query: Query, now_s: float) -> Outcome | None:
        if self._state == "starting":
            return unserved(query, "rejected", "not_ready", now_s)
        if self._state == "stopped":
            reason = "device_failed" if self._fault else "draining"
            return unserved(query, "rejected", reason, now_s)
        return self._scheduler.submit(query, now_s)

    def _may_queue(self, others: DeviceLoad) -> bool:
        """Whether to decide a batch behind what runs: a full one, where nobody else is served."""
        return not (others.num_models or self._is_stopping) and self._scheduler.fills_another()

    def _poll(self, now_s: float, others: DeviceLoad) -> Dispatch:
        poll = self._scheduler.poll_behind if self._under_way else self._scheduler.poll
        try:
            return poll(now_s, None, others)
        except PolicyError as error:
            scheduler, name = self._scheduler, self._scheduler.policy.name
            logger.exception("policy %s failed: %s takes over", name, FALLBACK_POLICY)
            self._fallback = f"policy {name} failed ({error}); {FALLBACK_POLICY} serves"
            scheduler.reconfigure(policy=create_policy(FALLBACK_POLICY, scheduler.offered))
            return poll(now_s, None, others)

    def _refuse_hopeless(self, until_s: float) -> list[EndedQuery]:
        now_s = self.clock()
        free_at_s = self._under_way.free_at_s(now_s)
        return end_hopeless(
            self._scheduler, self._ledger, now_s, free_at_s=free_at_s, until_s=until_s
        )

    # --- handing replies over --------------------------------------------------------------------

    def _hand_over(self, ended: Sequence[EndedQuery]) -> None:
        if ended:
            self._answers.call(self._ledger.deliver, ended)
