"""Streams on a real decoder in virtual time, which the processor time of its iterations moves.

The scheduler decides what it would decide live, and every iteration is computed; only the clock is
another. What else runs on the machine makes no iteration longer, so policies can be compared where
neighbours would decide a comparison in real time. The door, the client and the event loop have no
part in it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from serve.bench.streams.setting import StreamRunner
from serve.engine.streams.stream_device import (
    IterationExecutor,
    SharedPrefix,
    StreamDevice,
    TokenRun,
    greedy,
)
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StepDispatch, StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery

_PREFIX = "prefix"


class ComputedStreams:
    """A scheduler and the decoder that computes its iterations, as `simulate_streams` drives them.

    `seconds` computes an iteration and returns the processor time of that.
    """

    def __init__(
        self, scheduler: StreamScheduler, device: StreamDevice, vocab_size: int, seed: int = 0
    ) -> None:
        self._scheduler = scheduler
        self._device = device
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)
        self.next_wakeup_s = scheduler.next_wakeup_s

    def submit(self, query: StreamQuery, now_s: float) -> StreamOutcome | None:
        """See `StreamScheduler.submit`; the prompt is drawn."""
        ids = self._rng.integers(1, self._vocab_size, query.prompt_tokens).tolist()
        outcome = self._scheduler.submit(query, now_s)
        if outcome is None:
            shared = None
            if query.cached_tokens:
                shared = SharedPrefix(_PREFIX, query.cached_tokens)
                run = TokenRun(_PREFIX, tuple(ids[: query.cached_tokens]), samples=False)
                self._device.executor.run(self._scheduler.costs.subnet_ids[-1], [run])
            self._device.begin(query.query_id, ids, greedy, shared)
        return outcome

    def poll(self, now_s: float) -> StepDispatch:
        """See `StreamScheduler.poll`."""
        dispatch = self._scheduler.poll(now_s)
        self._forget(dispatch.dropped)
        return dispatch

    def complete(
        self, step_id: int, now_s: float, ended: Collection[int] = ()
    ) -> tuple[StreamOutcome, ...]:
        """See `StreamScheduler.complete`."""
        return self._forget(self._scheduler.complete(step_id, now_s, ended))

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[StreamOutcome, ...]:
        """See `StreamScheduler.cancel_all`."""
        return self._forget(self._scheduler.cancel_all(now_s, reason))

    def seconds(self, step: Step) -> float:
        """Compute an iteration; return its processor time, of all threads."""
        for query_id in step.preempted:
            self._device.restart(query_id)
        before_s = time.process_time()
        self._device.run(step.subnet_id, step.chunks)
        return time.process_time() - before_s

    def _forget(self, outcomes: Iterable[StreamOutcome]) -> tuple[StreamOutcome, ...]:
        ended = tuple(outcomes)
        for outcome in ended:
            self._device.release(outcome.query_id)
        return ended


def processor_runner(
    costs: IterationCosts,
    executor: IterationExecutor,
    vocab_size: int,
    *,
    kv_tokens: int,
    extent_tokens: int = 64,
) -> StreamRunner:
    """Return what serves streams on a decoder in processor time.

    What streams have cached is computed before the run.
    """

    def run(queries: Sequence[StreamQuery], policy: str) -> list[StreamOutcome]:
        scheduler = StreamScheduler(
            costs,
            create_stream_policy(policy, costs),
            kv_tokens=kv_tokens,
            extent_tokens=extent_tokens,
            correct_costs=True,
        )
        streams = ComputedStreams(scheduler, StreamDevice(executor), vocab_size)
        try:
            return simulate_streams(queries, streams, seconds=streams.seconds)
        finally:
            executor.release(_PREFIX)

    return run
