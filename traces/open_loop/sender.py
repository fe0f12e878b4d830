"""One sender of an open-loop replay: its part of the queries, each at its time.

In scope: pacing, deadlines, retries inside the slack that is left, what came back. Out of scope:
transport (see `Target`), and judging a whole run (`result.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from traces.open_loop.answers import Answer, AnswerLog
from traces.open_loop.pacing import Clock
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.target import ReplayReply, ReplayRequest, Target
from traces.trace import Trace, TraceError

PROGRESS_PERIOD_S = 0.5
INTERRUPT_GRACE_S = 1.0
RETRY_AFTER_S = 0.005
_WATCH_PERIOD_S = 0.01
_CHUNK = 4096
RETRY_SHARE = 0.1
"""Cap on retries over queries so far: retries add load to a server that has too much."""


class Progress(NamedTuple):
    """A moment of the run: counts so far. Passed to the progress callback twice a second."""

    sent: int
    ended: int
    on_time: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPlan:
    """A run's fixed inputs, checked. `query_ids` are the queries that this sender sends."""

    trace: Trace
    slo_s: np.ndarray
    payloads: np.ndarray
    labels: np.ndarray | None
    payload_index: np.ndarray
    timeout_s: float | None
    max_retries: int
    query_ids: np.ndarray

    def share(self, index: int, count: int) -> SendPlan:
        """Return the part of sender `index` of `count`: every count-th query."""
        return dataclasses.replace(self, query_ids=self.query_ids[index::count])


class Sender:
    """One sender at work: its plan, its outstanding queries and the answers so far."""

    def __init__(
        self,
        plan: SendPlan,
        target: Target,
        clock: Clock,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.answers = AnswerLog()
        self.ended_s = 0.0
        self.cpu_s = 0.0
        self.loop_lag_s = array("d")
        self._plan = plan
        self._target = target
        self._clock = clock
        self._progress = progress
        self._start_s = 0.0
        self._num_sent = 0
        self._num_retries = 0
        self._num_on_time = 0
        self._next_progress_s = 0.0
        self._outstanding: set[asyncio.Task[None]] = set()

    async def execute(self, start_s: float) -> bool:
        """Send everything and wait for the answers; return whether the run was interrupted.

        `start_s` is when the trace's time 0 is on this sender's clock.
        """
        self._start_s = start_s
        cpu_before_s = time.thread_time()
        watching = asyncio.create_task(self._watch_loop())
        try:
            with _short_collections():
                return await self._execute()
        finally:
            watching.cancel()
            self.cpu_s = time.thread_time() - cpu_before_s

    async def _execute(self) -> bool:
        try:
            await self._send_all()
            while self._outstanding:
                await asyncio.wait(self._outstanding, timeout=PROGRESS_PERIOD_S)
                self._report_progress()
        except asyncio.CancelledError:
            self.ended_s = self._elapsed_s()
            await self._interrupt()
            return True
        self._report_progress(is_last=True)
        return False

    async def _watch_loop(self) -> None:
        """Note how late the event loop comes back: answers are read that much too late as well."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _WATCH_PERIOD_S
            await asyncio.sleep(_WATCH_PERIOD_S)
            self.loop_lag_s.append(max(loop.time() - due_s, 0.0))

    async def _send_all(self) -> None:
        for query_id, intended_s in self._due():
            await self._clock.sleep_until(self._start_s + intended_s)
            task = asyncio.create_task(self._send(query_id, intended_s))
            self._outstanding.add(task)
            task.add_done_callback(self._outstanding.discard)
            self._num_sent += 1
            if self._num_sent % 16 == 0:
                await asyncio.sleep(0)  # a burst that is already due must not starve the sends
            self._report_progress()

    def _due(self) -> Iterator[tuple[int, float]]:
        """Yield each query with its intended time, some at a time: a long run has many."""
        ids, arrival_s = self._plan.query_ids, self._plan.trace.arrival_s
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            yield from zip(part.tolist(), arrival_s[part].tolist(), strict=True)

    async def _send(self, query_id: int, intended_s: float) -> None:
        plan = self._plan
        payload_index = int(plan.payload_index[query_id % len(plan.payload_index)])
        slo_s = float(plan.slo_s[query_id])
        classes = plan.trace.query_class
        sent_s = self._elapsed_s()
        deadline_s = intended_s + slo_s
        request = ReplayRequest(
            query_id=query_id,
            payload=plan.payloads[payload_index],
            slo_s=max(deadline_s - sent_s, 1e-6),
            timeout_s=plan.timeout_s,
            query_class=None if classes is None else int(classes[query_id]),
            payload_id=payload_index,
        )
        reply, attempts = await self._send_once(request), 1
        while attempts <= plan.max_retries and await self._may_retry(reply, deadline_s):
            left_s = max(deadline_s - self._elapsed_s(), 1e-6)
            reply = await self._send_once(dataclasses.replace(request, slo_s=left_s))
            attempts += 1
        finish_s = self._elapsed_s()
        is_ok = reply.status == "ok"
        self._num_on_time += is_ok and finish_s <= intended_s + slo_s
        is_right = self._judge(reply, payload_index)
        self.answers.append(
            Answer(query_id, intended_s, sent_s, finish_s, reply, is_right, attempts)
        )

    async def _may_retry(self, reply: ReplayReply, deadline_s: float) -> bool:
        """Wait as long as the server asked for, if a second answer could still be on time."""
        is_worth_it = reply.status == "rejected" or (reply.status == "failed" and reply.can_retry)
        wait_s = max(reply.retry_after_s, RETRY_AFTER_S)
        if not is_worth_it or self._num_retries >= RETRY_SHARE * self._num_sent:
            return False
        if self._elapsed_s() + wait_s >= deadline_s:
            return False
        self._num_retries += 1
        try:
            await asyncio.sleep(wait_s)
        except asyncio.CancelledError:  # the run ends: the query does with the answer it has
            return False
        return True

    async def _send_once(self, request: ReplayRequest) -> ReplayReply:
        """Return the target's reply; whatever goes wrong becomes a `failed` one with its reason."""
        limit = asyncio.timeout(request.timeout_s)
        try:
            async with limit:
                return await self._target.infer(request)
        except asyncio.CancelledError:
            return ReplayReply(status="failed", reason="interrupted before an answer came")
        except Exception as error:  # the boundary to foreign transport: nothing may end the run
            if limit.expired():
                reason = f"no answer within the timeout of {request.timeout_s:g} s"
                return ReplayReply(status="failed", reason=reason)
            return ReplayReply(status="failed", reason=f"{type(error).__name__}: {error}")

    def _judge(self, reply: ReplayReply, payload_index: int) -> bool | None:
        """Say whether the returned answer is right (top-1); None without answer or label."""
        labels = self._plan.labels
        if labels is None or reply.status != "ok" or reply.output is None or not reply.output.size:
            return None
        return int(np.argmax(reply.output)) == int(labels[payload_index])

    async def _interrupt(self) -> None:
        """Give outstanding queries a moment to end, then end them as failed."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        if self._outstanding:
            _, late = await asyncio.wait(set(self._outstanding), timeout=INTERRUPT_GRACE_S)
            for unanswered in late:
                unanswered.cancel()
            if late:
                await asyncio.wait(late)

    def _elapsed_s(self) -> float:
        return self._clock.now_s() - self._start_s

    def _report_progress(self, is_last: bool = False) -> None:
        if self._progress is None:
            return
        now_s = self._clock.now_s()
        if is_last or now_s >= self._next_progress_s:
            self._next_progress_s = now_s + PROGRESS_PERIOD_S
            total = len(self._plan.query_ids)
            self._progress(Progress(self._num_sent, len(self.answers), self._num_on_time, total))


@contextmanager
def _short_collections() -> Iterator[None]:
    """Keep the cyclic collector to young objects: a full pass takes longer than a send may wait."""
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], 1_000_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def make_plan(trace: Trace, payloads: Payloads, options: ReplayOptions) -> SendPlan:
    """Check the inputs of a run. Raises TraceError for those that do not fit together."""
    slo_s, timeout_s, warmup_s = options.slo_s, options.timeout_s, options.warmup_s
    samples, labels = payloads.images, payloads.labels
    if len(trace) == 0:
        raise TraceError("the trace has no arrivals, there is nothing to replay")
    if slo_s is None and trace.slo_s is None:
        raise TraceError("the trace carries no deadlines; give slo_s")
    if slo_s is not None and not 0 < slo_s < float("inf"):
        raise TraceError(f"slo_s must be a finite number of seconds above 0, got {slo_s}")
    if timeout_s is not None and timeout_s <= 0:
        raise TraceError(f"timeout_s must be above 0 or None, got {timeout_s}")
    if not 0 <= warmup_s < trace.duration_s:
        raise TraceError(
            f"warmup_s {warmup_s:g} must be at least 0 and below the trace's {trace.duration_s:g} s"
        )
    if options.max_retries < 0:
        raise TraceError(f"max_retries must be at least 0, got {options.max_retries}")
    if len(samples) == 0:
        raise TraceError("payloads is empty; give at least one sample (C, H, W)")
    if labels is not None and len(labels) != len(samples):
        raise TraceError(f"labels has {len(labels)} values for {len(samples)} payloads")
    return SendPlan(
        trace=trace,
        slo_s=np.full(len(trace), slo_s) if slo_s is not None else np.asarray(trace.slo_s),
        payloads=samples,
        labels=labels,
        payload_index=np.random.default_rng(options.seed).permutation(len(samples)),
        timeout_s=timeout_s,
        max_retries=options.max_retries,
        query_ids=np.arange(len(trace)),
    )
