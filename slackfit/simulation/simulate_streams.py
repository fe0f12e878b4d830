"""Streams in virtual time: the very scheduler that serves them, under a clock that jumps.

A device for each scheduler, and a stream stays where its keys and values are. Order of events, the
one a live engine keeps: at a completion `complete`, then `poll`; at an arrival `submit`, then, if
the device is free, `poll`; at equal times the completion comes first. What can't be served any
more leaves as `cancelled`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from slackfit.scheduling.streams.stream_scheduler import StepDispatch
from slackfit.simulation.simulate import collector_paused
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery

StepSeconds = Callable[[Step], float]
"""How long the device takes for an iteration."""

OnStep = Callable[[Step, float], None]
"""Called with an iteration and when it ended."""


class DrivenStreamScheduler(Protocol):
    """What the driver calls: a `StreamScheduler` or something that wraps one."""

    def submit(self, query: StreamQuery, now_s: float) -> StreamOutcome | None: ...
    def poll(self, now_s: float) -> StepDispatch: ...
    def complete(
        self, step_id: int, now_s: float, ended: Collection[int] = ...
    ) -> tuple[StreamOutcome, ...]: ...
    def cancel_all(self, now_s: float, reason: str = ...) -> tuple[StreamOutcome, ...]: ...
    def next_wakeup_s(self) -> float | None: ...


def as_expected(step: Step) -> float:
    """Take as long as the scheduler expects."""
    return step.expected_s


STREAM_ROUTINGS = ("round-robin", "fewest-streams")
"""How streams get to replicas: in turn, or to the one with the fewest that have not ended."""


def simulate_streams(
    queries: Sequence[StreamQuery],
    scheduler: DrivenStreamScheduler,
    *,
    seconds: StepSeconds = as_expected,
    on_step: OnStep | None = None,
) -> list[StreamOutcome]:
    """Serve `queries`, in order of arrival, in virtual time; return one outcome each, in order.

    Raises ValueError for arrivals that are not sorted, and what the scheduler raises.
    """
    return simulate_stream_replicas(queries, [scheduler], seconds=seconds, on_step=on_step)


def simulate_stream_replicas(
    queries: Sequence[StreamQuery],
    schedulers: Sequence[DrivenStreamScheduler],
    routing: str = STREAM_ROUTINGS[0],
    *,
    seconds: StepSeconds = as_expected,
    on_step: OnStep | None = None,
) -> list[StreamOutcome]:
    """Do what `simulate_streams` does with a device for each scheduler; a stream stays where it is.

    Raises what `simulate_streams` raises, and ValueError for a routing other than
    `STREAM_ROUTINGS`.
    """
    if routing not in STREAM_ROUTINGS:
        raise ValueError(f"routing {routing!r} is unknown, allowed {', '.join(STREAM_ROUTINGS)}")
    by_id: dict[int, StreamOutcome] = {}
    drivers = [_StreamDriver(scheduler, seconds, on_step, by_id) for scheduler in schedulers]
    last_s = 0.0
    with collector_paused():
        for number, query in enumerate(queries):
            if query.arrival_s < last_s:
                raise ValueError(
                    f"arrivals must be sorted, but query {query.query_id} comes at "
                    f"{query.arrival_s} s, after one at {last_s} s"
                )
            last_s = query.arrival_s
            driver = drivers[number % len(drivers)]
            if routing == "fewest-streams":
                for each in drivers:
                    each.advance(last_s)
                driver = min(drivers, key=lambda each: each.num_open)
            driver.advance(last_s)
            driver.arrive(query)
        for driver in drivers:
            driver.end()
    return [by_id[query.query_id] for query in queries]


class _StreamDriver:
    def __init__(
        self,
        scheduler: DrivenStreamScheduler,
        seconds: StepSeconds,
        on_step: OnStep | None,
        by_id: dict[int, StreamOutcome],
    ) -> None:
        self._scheduler = scheduler
        self._seconds = seconds
        self._on_step = on_step
        self._by_id = by_id
        self.num_open = 0
        self._step: Step | None = None
        self._finish_s = float("inf")
        self._now_s = 0.0

    def advance(self, until_s: float) -> None:
        """Let happen what does until `until_s`."""
        while self._step is not None and self._finish_s <= until_s:
            step, self._now_s = self._step, self._finish_s
            self._step = None
            self._note(self._scheduler.complete(step.step_id, self._now_s))
            if self._on_step is not None:
                self._on_step(step, self._now_s)
            self._poll()

    def arrive(self, query: StreamQuery) -> None:
        self._now_s = query.arrival_s
        self.num_open += 1
        refused = self._scheduler.submit(query, self._now_s)
        if refused is not None:
            self._note((refused,))
        elif self._step is None:
            self._poll()

    def end(self) -> None:
        self.advance(float("inf"))
        self._note(self._scheduler.cancel_all(self._now_s))

    def _poll(self) -> None:
        step, dropped = self._scheduler.poll(self._now_s)
        self._note(dropped)
        if step is not None:
            self._step = step
            self._finish_s = self._now_s + self._seconds(step)

    def _note(self, outcomes: Iterable[StreamOutcome]) -> None:
        for outcome in outcomes:
            self.num_open -= 1
            self._by_id[outcome.query_id] = outcome
