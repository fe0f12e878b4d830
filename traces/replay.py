"""Open-loop replay: send every query of a trace at its time, whatever the server does.

Latency counts from the *intended* send, so neither a slow server nor a late generator can hide a
delay (coordinated omission). The generator's own lag is measured for each query; a run whose lag
is too large says that it is invalid. Cancellation (Ctrl-C under `asyncio.run`) ends the run early
with a valid partial result.

In scope: pacing, deadlines, outcomes, measured accuracy. Out of scope: transport (see `Target`),
retries, and what the model computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from traces.pacing import Clock, MonotonicClock
from traces.result import Answer, ReplayResult, make_result
from traces.target import ReplayReply, ReplayRequest, Target
from traces.trace import Trace, TraceError

__all__ = [
    "Progress",
    "ReplayReply",
    "ReplayRequest",
    "ReplayResult",
    "Target",
    "replay",
]

PROGRESS_PERIOD_S = 0.5
INTERRUPT_GRACE_S = 1.0
INVALID_LAG_PER_SLO = 0.1
START_DELAY_S = 0.02


class Progress(NamedTuple):
    """A moment of the run: counts so far. Passed to the progress callback twice a second."""

    sent: int
    ended: int
    on_time: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The run's fixed inputs, checked."""

    trace: Trace
    slo_s: np.ndarray
    payloads: np.ndarray
    labels: np.ndarray | None
    payload_index: np.ndarray
    timeout_s: float | None


async def replay(
    trace: Trace,
    target: Target,
    *,
    slo_s: float | None = None,
    payloads: np.ndarray,
    labels: np.ndarray | None = None,
    seed: int = 0,
    timeout_s: float | None = 30.0,
    warmup_s: float = 0.0,
    max_lag_s: float | None = None,
    clock: Clock | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ReplayResult:
    """Send each query of `trace` to `target` at its time and return how each one ended.

    `slo_s` is every query's relative deadline; None takes the trace's own. Query i sends sample
    `i` of a permutation of `payloads` (N, C, H, W) drawn from `seed` and repeated; `labels` (N,)
    make `measured_accuracy`. A query unanswered after `timeout_s` (from its send) is `failed`.
    Queries that arrive in the first `warmup_s` seconds are sent but left out of the result, whose
    times then count from the end of the warm-up. The run is invalid when the 99th percentile of
    the generator's lag passes `max_lag_s` (None: a tenth of the smallest SLO).

    Raises:
        TraceError: for inputs that do not fit together; nothing has been sent then.
    """
    plan = _plan(trace, slo_s, payloads, labels, seed, timeout_s, warmup_s)
    run = _Run(plan, target, clock or MonotonicClock(), progress)
    is_partial = await run.execute()
    return make_result(
        trace,
        run.answers,
        slo_s=plan.slo_s,
        warmup_s=warmup_s,
        ended_s=run.ended_s if is_partial else None,
        max_lag_s=INVALID_LAG_PER_SLO * float(plan.slo_s.min()) if max_lag_s is None else max_lag_s,
    )


class _Run:
    """One replay in progress: the sender and its outstanding queries."""

    def __init__(
        self,
        plan: _Plan,
        target: Target,
        clock: Clock,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.answers: list[Answer] = []
        self.ended_s = 0.0
        self._plan = plan
        self._target = target
        self._clock = clock
        self._progress = progress
        self._start_s = 0.0
        self._num_sent = 0
        self._num_on_time = 0
        self._next_progress_s = 0.0
        self._outstanding: set[asyncio.Task[None]] = set()

    async def execute(self) -> bool:
        """Send everything and wait for the answers; return whether the run was interrupted."""
        # A little ahead, so that the first query is not late before the loop has started.
        self._start_s = self._clock.now_s() + START_DELAY_S
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

    async def _send_all(self) -> None:
        for query_id, intended_s in enumerate(self._plan.trace.arrival_s.tolist()):
            await self._clock.sleep_until(self._start_s + intended_s)
            task = asyncio.create_task(self._send(query_id, intended_s))
            self._outstanding.add(task)
            task.add_done_callback(self._outstanding.discard)
            self._num_sent += 1
            if self._num_sent % 16 == 0:
                await asyncio.sleep(0)  # a burst that is already due must not starve the sends
            self._report_progress()

    async def _send(self, query_id: int, intended_s: float) -> None:
        plan = self._plan
        payload_index = int(plan.payload_index[query_id % len(plan.payload_index)])
        slo_s = float(plan.slo_s[query_id])
        classes = plan.trace.query_class
        sent_s = self._elapsed_s()
        request = ReplayRequest(
            query_id=query_id,
            payload=plan.payloads[payload_index],
            slo_s=max(slo_s - (sent_s - intended_s), 1e-6),
            timeout_s=plan.timeout_s,
            query_class=0 if classes is None else int(classes[query_id]),
        )
        reply = await self._ask(request)
        finish_s = self._elapsed_s()
        is_ok = reply.status == "ok"
        self._num_on_time += is_ok and finish_s <= intended_s + slo_s
        self.answers.append(
            Answer(query_id, intended_s, sent_s, finish_s, reply, self._judge(reply, payload_index))
        )

    async def _ask(self, request: ReplayRequest) -> ReplayReply:
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
            total = len(self._plan.trace)
            self._progress(Progress(self._num_sent, len(self.answers), self._num_on_time, total))


def _plan(
    trace: Trace,
    slo_s: float | None,
    payloads: np.ndarray,
    labels: np.ndarray | None,
    seed: int,
    timeout_s: float | None,
    warmup_s: float,
) -> _Plan:
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
    if len(payloads) == 0:
        raise TraceError("payloads is empty; give at least one sample (C, H, W)")
    if labels is not None and len(labels) != len(payloads):
        raise TraceError(f"labels has {len(labels)} values for {len(payloads)} payloads")
    return _Plan(
        trace=trace,
        slo_s=np.full(len(trace), slo_s) if slo_s is not None else np.asarray(trace.slo_s),
        payloads=payloads,
        labels=labels,
        payload_index=np.random.default_rng(seed).permutation(len(payloads)),
        timeout_s=timeout_s,
    )
