"""The stream engine: one stream scheduler and one decoder, driven in real time.

As `Engine` for queries: the door (an asyncio loop) opens streams; one device thread warms every
width up, then repeats `step`: poll the scheduler, run the iteration, complete it, and hand all its
outputs to the loop with one wake-up. `step` takes its time from an injected clock and needs no
thread, so a test drives the very same code in virtual time. The engine's stamps, taken when an
iteration ends, are what fluidity is judged by.

Whatever happens, every stream ends exactly once. A poisonous prompt costs its own stream only
(`step_runner.py`); a part of the device that is gone costs the streams that it held; a device that
hangs, one whose thread ends and one that does not come back at the end fail all, and `status` says
which it was; a policy that breaks its contract is replaced by `fixed:smallest`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

from serve.engine.answer_loop import AnswerLoop, settle
from serve.engine.guarded import Guarded
from serve.engine.job import State
from serve.engine.streams.open_stream import OpenStream, StreamOutput, StreamRequest
from serve.engine.streams.prefix_cache import PrefixCounts
from serve.engine.streams.step_runner import StepResult, StepRunner
from serve.engine.streams.stream_device import StreamDevice
from serve.engine.watchdog import Watchdog
from slackfit.policies.streams import create_stream_policy
from slackfit.query import Status
from slackfit.scheduling.streams.schedule_view import StreamPolicyError
from slackfit.scheduling.streams.stream_scheduler import StepDispatch, StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_policy import StreamPolicy
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery

logger = logging.getLogger(__name__)

STREAM_FALLBACK = "fixed:smallest"
HUNG_AFTER_S = 10.0
PROBE_AFTER_S = 10.0
_PROBE = IterationWork(1, 1, 1, 1)
_DRAIN_POLL_S = 0.005
_MIN_WAIT_S = 1e-4
_LOOK_AFTER_S = 0.5  # while nothing is asked

OnStep = Callable[[Step, float, float], None]
"""Called on the device thread with an iteration, when it ended, and what deciding it took (s)."""


class StreamStatus(NamedTuple):
    """A snapshot for health checks and metrics; see `EngineStatus`."""

    state: State
    policy: str
    num_running: int
    num_waiting: int
    kv_share: float
    fallback: str
    fault: str
    ended: dict[Status, int]


class _Delivery(NamedTuple):
    """What one iteration has for the streams of the loop."""

    outputs: list[tuple[OpenStream, StreamOutput]]
    ended: list[tuple[OpenStream, StreamOutcome]]


class StreamEngine:
    """Serves streams on one decoder; see the module for the threads involved.

    `observer` is called with every outcome on the thread that delivers it, `on_step` after every
    iteration on the device thread. A device that had nothing to do for `probe_after_s` is given a
    token of nobody's, so that one that fails or hangs is known before the next stream comes.
    """

    def __init__(
        self,
        scheduler: StreamScheduler,
        device: StreamDevice,
        *,
        clock: Callable[[], float] = time.monotonic,
        observer: Callable[[StreamOutcome], None] | None = None,
        on_step: OnStep | None = None,
        hung_after_s: float = HUNG_AFTER_S,
        probe_after_s: float = PROBE_AFTER_S,
    ) -> None:
        self.clock = clock
        self._scheduler = scheduler
        self._runner = StepRunner(device)
        self._device = device
        self._prefixes = device.prefixes
        self._width = scheduler.costs.subnet_ids[-1]  # of the last iteration
        self._observer = None if observer is None else Guarded(observer)
        self._on_step = None if on_step is None else Guarded(on_step)
        self._watchdog = Watchdog(hung_after_s)
        self._probe_after_s = probe_after_s
        self._watch: asyncio.Task[None] | None = None
        self._state: State = "starting"
        self._fallback = ""
        self._fault = ""
        self._ids = itertools.count()
        self._open: dict[int, OpenStream] = {}
        self._to_begin: list[OpenStream] = []
        self._to_release: list[int] = []
        self._counts: Counter[Status] = Counter()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._is_dirty = False
        self._is_stopping = False
        self._answers = AnswerLoop()
        self._thread: threading.Thread | None = None

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Warm every width up on the device thread, then take streams from this event loop.

        Raises what an iteration raises.
        """
        warm: asyncio.Future[None] = self._answers.bind().create_future()
        self._thread = threading.Thread(
            target=self._device_main, args=(warm,), name="decoder", daemon=True
        )
        self._thread.start()
        await warm
        self._watch = asyncio.ensure_future(self._watch_device())

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new streams and finish the open ones; return whether all ended in time."""
        with self._lock:
            if self._state == "stopped":
                return not self._open
            self._state = "draining"
            self._scheduler.drain()
        give_up_s = self.clock() + timeout_s
        while self._open and self.clock() < give_up_s:
            await asyncio.sleep(_DRAIN_POLL_S)
        return not self._open

    async def stop(self, timeout_s: float = 5.0) -> None:
        """End the device thread; open streams end as dropped, `draining`.

        Where the device does not come back with its iteration in time they have `failed`.
        """
        with self._lock:
            self._is_stopping = True
            self._state = "stopped"
            self._touch()
        if self._watch is not None:
            self._watch.cancel()
        if self._thread is not None and not self._fault:  # a hung thread is never joined
            await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread is not None and self._thread.is_alive() and not self._fault:
            self._deliver(self._give_up("the device did not end its iteration in time"))
            return
        with self._lock:
            outcomes = self._scheduler.cancel_all(self.clock(), "draining")
            delivery = _Delivery([], self._close(outcomes))
        self._deliver(delivery)

    # --- streams ---------------------------------------------------------------------------------

    def open(self, request: StreamRequest) -> OpenStream:
        """Take a request, on the loop's thread; a refused one has its outcome at once."""
        request = self._with_prefix(request)
        with self._lock:
            stream = OpenStream(request.query(next(self._ids)), request, self._cancel)
            now_s = self.clock()
            outcome = self._admit(stream.query, now_s)
            if outcome is None:
                self._open[stream.query.query_id] = stream
                self._to_begin.append(stream)
                self._touch()
        if outcome is not None:
            if self._prefixes is not None and request.shared is not None:
                self._prefixes.unpin(request.shared.source)
            self._count(outcome)
            stream.end(outcome)
        return stream

    def _with_prefix(self, request: StreamRequest) -> StreamRequest:
        """Return a request with what is computed of its prompt, as well as it would be now."""
        if self._prefixes is None or request.shared is not None:
            return request
        costs = self._scheduler.costs
        quality = costs.rung(self._width).quality if self._open else costs.rungs[-1].quality
        wanted = max(quality, request.min_quality)
        return replace(request, shared=self._prefixes.pin(request.prompt, request.tenant, wanted))

    def _cancel(self, stream: OpenStream, reason: str) -> None:
        with self._lock:
            query_id = stream.query.query_id
            outcome = self._scheduler.cancel(query_id, self.clock(), reason)
            delivery = _Delivery([], self._close(() if outcome is None else (outcome,)))
            self._touch()
        self._deliver(delivery)

    @property
    def costs(self) -> IterationCosts:
        """The widths that may run, and what iterations are predicted to take on them."""
        return self._scheduler.costs

    @property
    def max_running(self) -> int:
        """How many streams may run at once."""
        return self._scheduler.max_running

    @property
    def kv_tokens(self) -> int:
        """For how many tokens of all streams there is memory."""
        return self._scheduler.kv.capacity_tokens

    def prefix_counts(self) -> PrefixCounts:
        """Return what was found of prompts that came before."""
        return PrefixCounts() if self._prefixes is None else self._prefixes.counts()

    def reconfigure(self, policy: StreamPolicy) -> None:
        """Decide by another policy from the next iteration on; streams stay."""
        with self._lock:
            self._scheduler.reconfigure(self.clock(), policy=policy)
            self._fallback = ""

    def status(self) -> StreamStatus:
        """Return a snapshot of the engine's state."""
        with self._lock:
            scheduler = self._scheduler
            return StreamStatus(
                self._state,
                scheduler.policy.name,
                scheduler.num_running,
                scheduler.num_waiting,
                scheduler.kv.held_tokens / scheduler.kv.capacity_tokens,
                self._fallback,
                self._fault,
                dict(self._counts),
            )

    # --- the device side -------------------------------------------------------------------------

    def step(self) -> bool:
        """Poll once, run the iteration if there is one, complete it. Return whether there was."""
        self._look_after()
        with self._lock:
            self._is_dirty = False
            begin, self._to_begin = self._to_begin, []
            release, self._to_release = self._to_release, []
            polled_s = self.clock()
            self._compute_lost(begin, polled_s)
            step, dropped = self._poll(polled_s)
            decision_s = self.clock() - polled_s
            delivery = _Delivery([], self._close(dropped))
            if step is not None:
                self._watchdog.launched(step.start_s, step.expected_s)
        for stream in begin:
            self._begin(stream)
        for query_id in release:
            self._device.release(query_id)
        self._hand_over(delivery)
        if step is None:
            return False
        result = self._runner.run(step, self._open)
        with self._lock:
            self._watchdog.returned()
            if self._fault:  # too late: its streams were answered as failed
                return False
            now_s = self.clock()
            self._width = step.subnet_id
            delivery = self._complete(step, result, now_s)
        self._hand_over(delivery)
        if self._on_step is not None:
            self._on_step(step, now_s, decision_s)
        return True

    def _look_after(self) -> None:
        """Have the device see to what it runs on, and end the streams that were lost with it.

        Again where some were, since it waits for what is gone only once they have been told.
        """
        while lost := self._device.look_after():
            with self._lock:
                now_s = self.clock()
                ended = [self._scheduler.cancel(i, now_s, "device_failed") for i in lost]
                failed = [o._replace(status="failed") for o in ended if o is not None]
                delivery = _Delivery([], self._close(failed))
            self._hand_over(delivery)

    def _begin(self, stream: OpenStream) -> None:
        """Hand a stream to the device; one that it can't begin fails alone."""
        failure = self._runner.begin(stream)
        if not failure:
            return
        with self._lock:
            outcome = self._scheduler.cancel(stream.query.query_id, self.clock(), failure)
            failed = () if outcome is None else (outcome._replace(status="failed"),)
            delivery = _Delivery([], self._close(failed))
        self._hand_over(delivery)

    def _device_main(self, warm: asyncio.Future[None]) -> None:
        try:
            for subnet_id in self._scheduler.costs.subnet_ids:
                self._device.probe(subnet_id)
        except Exception as error:  # handed to whoever started the engine
            self._answers.call(settle, warm, error)
            return
        with self._lock:
            if self._state == "starting":
                self._state = "ready"
        self._answers.call(settle, warm, None)
        try:
            while not self._is_stopping:
                if not self.step() and self._waited_long():
                    self._probe()
        except Exception as error:  # a bug of ours: say so to every client, and stay down
            logger.exception("the decoder's thread ended")
            self._hand_over(self._give_up(f"the device thread ended: {type(error).__name__}"))

    def _waited_long(self) -> bool:
        """Wait for something to do, and look after the device meanwhile.

        Return whether nothing was asked for so long that it is to be probed instead.
        """
        probe_at_s = self.clock() + self._probe_after_s
        while True:
            with self._wake:
                if self._is_dirty or self._is_stopping:
                    return False
                wakeup_s = self._scheduler.next_wakeup_s()
                end_s = probe_at_s if wakeup_s is None else wakeup_s
                left_s = max(_MIN_WAIT_S, end_s - self.clock())
                if self._wake.wait(min(left_s, _LOOK_AFTER_S)):
                    return False
            if left_s <= _LOOK_AFTER_S:
                return wakeup_s is None
            self._look_after()

    def _probe(self) -> None:
        """Run a token that nobody asked for. Raises what the executor raises."""
        subnet_id = self._scheduler.costs.subnet_ids[0]
        with self._lock:
            expected_s = self._scheduler.costs.seconds(subnet_id, _PROBE)
            self._watchdog.launched(self.clock(), expected_s)
        self._runner.probe(subnet_id)
        with self._lock:
            self._watchdog.returned()

    async def _watch_device(self) -> None:
        while not self._fault:
            await asyncio.sleep(self._watchdog.hung_after_s / 4)
            with self._lock:
                is_hung = self._watchdog.is_hung(self.clock())
            if is_hung:
                logger.error("the decoder hangs: every open stream fails, no more are taken")
                self._deliver(self._give_up("the device hangs"))

    def _give_up(self, fault: str) -> _Delivery:
        with self._lock:
            self._fault = fault
            self._state = "stopped"
            self._is_stopping = True
            outcomes = self._scheduler.cancel_all(self.clock(), "device_failed")
            return _Delivery([], self._close([o._replace(status="failed") for o in outcomes]))

    # --- with the lock held ----------------------------------------------------------------------

    def _touch(self) -> None:
        self._is_dirty = True
        self._wake.notify()

    def _admit(self, query: StreamQuery, now_s: float) -> StreamOutcome | None:
        if self._state in ("starting", "stopped"):
            reason = "not_ready" if self._state == "starting" else "draining"
            reason = "device_failed" if self._fault else reason
            return StreamOutcome(query.query_id, "rejected", reason, query, None, now_s)
        return self._scheduler.submit(query, now_s)

    def _compute_lost(self, begin: Collection[OpenStream], now_s: float) -> None:
        """Have streams compute what they were promised or shared, if it is lost before they ran."""
        lost = [self._open[i] for i in self._device.taken_back() if i in self._open]
        for stream in begin:
            shared = stream.request.shared
            if self._prefixes is None or shared is None:
                continue
            if self._prefixes.is_lost(shared.source):
                self._prefixes.unpin(shared.source)
                lost.append(stream)
        for stream in lost:
            stream.request = replace(stream.request, shared=None)
            stream.query = stream.query._replace(cached_tokens=0)
            self._scheduler.recompute(stream.query.query_id, now_s)

    def _poll(self, now_s: float) -> StepDispatch:
        try:
            return self._scheduler.poll(now_s)
        except StreamPolicyError as error:
            scheduler, name = self._scheduler, self._scheduler.policy.name
            logger.exception("policy %s failed: %s takes over", name, STREAM_FALLBACK)
            self._fallback = f"policy {name} failed ({error}); {STREAM_FALLBACK} serves"
            fallback = create_stream_policy(STREAM_FALLBACK, scheduler.costs)
            scheduler.reconfigure(now_s, policy=fallback)
            return scheduler.poll(now_s)

    def _complete(self, step: Step, result: StepResult, now_s: float) -> _Delivery:
        quality = self._scheduler.costs.rung(step.subnet_id).quality
        outputs: list[tuple[OpenStream, StreamOutput]] = []
        for query_id, token in result.tokens.items():
            stream = self._open.get(query_id)
            if stream is not None:  # else it was cancelled while it ran
                outputs.append((stream, StreamOutput(token, now_s, step.subnet_id, quality)))
        outcomes = self._scheduler.complete(
            step.step_id, now_s, result.over, tuple(result.failed.items())
        )
        return _Delivery(outputs, self._close(outcomes))

    def _close(self, outcomes: Collection[StreamOutcome]) -> list[tuple[OpenStream, StreamOutcome]]:
        """Take ended streams off the books; the device forgets them before the next iteration."""
        self._to_release += [outcome.query_id for outcome in outcomes]
        return [(self._open.pop(outcome.query_id), outcome) for outcome in outcomes]

    # --- handing over ----------------------------------------------------------------------------

    def _hand_over(self, delivery: _Delivery) -> None:
        if delivery.outputs or delivery.ended:
            self._answers.call(self._deliver, delivery)

    def _deliver(self, delivery: _Delivery) -> None:
        for stream, output in delivery.outputs:
            stream.put(output)
        for stream, outcome in delivery.ended:
            self._count(outcome)
            stream.end(outcome)

    def _count(self, outcome: StreamOutcome) -> None:
        self._counts[outcome.status] += 1
        if self._observer is not None:
            self._observer(outcome)
