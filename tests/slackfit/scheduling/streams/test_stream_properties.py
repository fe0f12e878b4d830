"""What holds for any workload and policy of the stream scheduler, by hypothesis."""

from __future__ import annotations

import io
import random
from collections.abc import Collection
from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_record import RecordingStreamScheduler, replay_stream_log
from slackfit.scheduling.streams.stream_scheduler import StepDispatch, StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery

POLICIES = (
    "slackwidth",
    "slackwidth@order=edf@granule=1",
    "slackwidth@room=ladder@order=hybrid",
    "fixed:middle",
    "sarathi@budget=16",
    "sarathi",
    "niyama",
    "fcfs",
    "edf",
    "lars@long_tokens=40@granule=4",
)


def a_query(i: int, at_s: float = 0.0, prompt: int = 10, outputs: int = 3, **more: Any):
    fields = {"first_deadline_s": at_s + 1.0, "period_s": 0.25, **more}
    return StreamQuery(i, at_s, prompt, outputs, **fields)


class Checked:
    """A scheduler that holds every call against a model of its own: tokens, memory, ends."""

    def __init__(self, inner: StreamScheduler, costs: IterationCosts) -> None:
        self._inner, self._costs = inner, costs
        self.cached: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.decoding: set[int] = set()
        self.queries: dict[int, StreamQuery] = {}
        self.ended: dict[int, StreamOutcome] = {}
        self.step: Step | None = None
        self.max_held = 0

    def submit(self, query: StreamQuery, now_s: float) -> StreamOutcome | None:
        self.queries[query.query_id] = query
        self.cached[query.query_id] = query.cached_tokens
        self.known[query.query_id] = query.prompt_tokens
        outcome = self._inner.submit(query, now_s)
        self._end(() if outcome is None else (outcome,))
        return outcome

    def poll(self, now_s: float) -> StepDispatch:
        step, dropped = self._inner.poll(now_s)
        self._end(dropped)
        if step is not None:
            self._check(step, now_s)
        return StepDispatch(step, dropped)

    def _check(self, step: Step, now_s: float) -> None:
        for query_id in step.preempted:
            self.cached[query_id] = 0
            self.decoding.discard(query_id)
        ids = [chunk.query_id for chunk in step.chunks]
        assert len(set(ids)) == len(ids), "a stream is in an iteration once"
        assert self.decoding <= set(ids), "every decode is in every iteration"
        for chunk in step.chunks:
            known, cached = self.known[chunk.query_id], self.cached[chunk.query_id]
            assert chunk.start == cached
            assert 1 <= chunk.length <= known - cached
            assert chunk.samples == (cached + chunk.length == known)
        if step.preempted:
            begun = {q for q in ids if self.cached[q] == 0}
            assert not begun - set(step.preempted)
            assert not begun, "nothing is begun where memory was short"
        work = IterationWork.of((c.start, c.length, c.samples) for c in step.chunks)
        assert step.expected_s == pytest.approx(self._costs.seconds(step.subnet_id, work))
        floors = [self.queries[query_id].min_quality for query_id in ids]
        assert self._costs.rung(step.subnet_id).quality >= max(floors)
        kv = self._inner.kv
        kv.check_integrity()
        tokens = [c.start + c.length for c in step.chunks]
        assert sum(-(-n // kv.extent_tokens) for n in tokens) <= kv.num_extents
        assert self._inner.num_running <= self._inner.max_running
        self.max_held = max(self.max_held, kv.held_tokens)
        self.step = step

    def complete(
        self, step_id: int, now_s: float, ended: Collection[int] = ()
    ) -> tuple[StreamOutcome, ...]:
        assert self.step is not None
        for chunk in self.step.chunks:
            self.cached[chunk.query_id] += chunk.length
            if chunk.samples:
                self.known[chunk.query_id] += 1
                self.decoding.add(chunk.query_id)
        outcomes = self._inner.complete(step_id, now_s, ended)
        self._end(outcomes)
        return outcomes

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[StreamOutcome, ...]:
        outcomes = self._inner.cancel_all(now_s, reason)
        assert not outcomes, "nothing is left over when no more arrives"
        return outcomes

    def next_wakeup_s(self) -> float | None:
        return self._inner.next_wakeup_s()

    def _end(self, outcomes: Collection[StreamOutcome]) -> None:
        for outcome in outcomes:
            assert outcome.query_id not in self.ended, "a stream ends once"
            self.ended[outcome.query_id] = outcome
            self.decoding.discard(outcome.query_id)


@st.composite
def workloads(draw: st.DrawFn) -> list[StreamQuery]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    count, rate = draw(st.integers(1, 14)), draw(st.sampled_from([0.5, 3.0, 30.0]))
    at_s, queries = 0.0, list[StreamQuery]()
    for i in range(count):
        at_s += rng.expovariate(rate)
        prompt = rng.choice([1, 2, 7, 30, 90])
        queries.append(
            StreamQuery(
                i,
                at_s,
                prompt,
                rng.choice([1, 2, 5, 25]),
                at_s + rng.choice([0.01, 0.5, 2.0]),
                rng.choice([0.05, 0.15, 0.4]),
                deadline_s=at_s + rng.choice([inf, inf, inf, 3.0]),
                min_quality=rng.choice([0.0, 0.0, 0.0, 0.7, 1.0]),
                query_class=rng.choice([0, 0, 0, 1]),
                tenant=rng.choice(["", "gold", "free"]),
                cached_tokens=rng.choice([0, 0, prompt - 1, prompt // 2]),
            )
        )
    return queries


def check_run(
    queries: list[StreamQuery], policy: str, extents: int, running: int, costs: IterationCosts
) -> None:
    settings: dict[str, Any] = {
        "kv_tokens": extents * 16,
        "extent_tokens": 16,
        "max_running": running,
        "correct_costs": running % 2 == 0,
    }
    if extents % 2:
        settings["tenant_shares"] = {"gold": 0.6, "free": 0.1}
    log = io.StringIO()
    recorder = RecordingStreamScheduler(
        costs, create_stream_policy(policy, costs), sink=log, **settings
    )
    checked = Checked(recorder, costs)
    outcomes = simulate_streams(queries, checked)
    assert checked.max_held <= extents * 16
    assert recorder.kv.held_tokens == 0
    assert len(recorder) == recorder.num_relegated == 0
    for query, outcome in zip(queries, outcomes, strict=True):
        too_long = query.prompt_tokens + query.max_tokens > extents * 16
        assert (outcome.reason == "too_long") == too_long
        if outcome.is_complete:
            assert len(outcome.output_s) == query.max_tokens
            assert list(outcome.output_s) == sorted(outcome.output_s)
            assert (outcome.status == "on_time") == (outcome.fluidity >= 0.9)
        else:
            assert outcome.reason in ("too_long", "expired")
    fresh = StreamScheduler(costs, create_stream_policy(policy, costs), **settings)
    calls = log.getvalue().splitlines()
    assert replay_stream_log(calls, fresh) == len(calls) - 1


RUNS = {
    "queries": workloads(),
    "policy": st.sampled_from(POLICIES),
    "extents": st.integers(4, 20),
    "running": st.integers(1, 8),
}
_FIXTURE = [HealthCheck.function_scoped_fixture]


@settings(max_examples=60, deadline=None, suppress_health_check=_FIXTURE)
@given(**RUNS)
def test_what_holds_for_every_run(
    queries: list[StreamQuery],
    policy: str,
    extents: int,
    running: int,
    decoder_costs: IterationCosts,
):
    check_run(queries, policy, extents, running, decoder_costs)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=_FIXTURE)
@given(**RUNS)
def test_what_holds_for_2000_runs(
    queries: list[StreamQuery],
    policy: str,
    extents: int,
    running: int,
    decoder_costs: IterationCosts,
):
    check_run(queries, policy, extents, running, decoder_costs)
