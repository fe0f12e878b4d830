"""The stream scheduler: what holds for any workload and policy, and each verb by itself."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Collection
from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.call_log import LogError, ReplayDifferenceError
from slackfit.scheduling.streams.schedule_view import StreamPolicyError
from slackfit.scheduling.streams.stream_record import RecordingStreamScheduler, replay_stream_log
from slackfit.scheduling.streams.stream_scheduler import StepDispatch, StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_policy import StreamDecision
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


@settings(max_examples=120, deadline=None, suppress_health_check=_FIXTURE)
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


# --- admission -----------------------------------------------------------------------------------


def scheduler_of(costs: IterationCosts, policy: str = "fcfs", **settings: Any) -> StreamScheduler:
    return StreamScheduler(costs, create_stream_policy(policy, costs), **settings)


def ids(step: Step | None) -> list[int]:
    return [] if step is None else [chunk.query_id for chunk in step.chunks]


def test_a_prompt_waits_until_memory_for_all_of_it_is_free(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs, kv_tokens=64, extent_tokens=16)
    scheduler.submit(a_query(0, prompt=20, outputs=2), 0.0)
    scheduler.submit(a_query(1, prompt=30, outputs=2), 0.0)  # 2 + 2 extents, and one to spare
    first = scheduler.poll(0.0).step
    assert first is not None
    assert ids(first) == [0]
    scheduler.complete(first.step_id, 0.1)
    second = scheduler.poll(0.1).step
    assert second is not None
    assert ids(second) == [0]
    assert [o.query_id for o in scheduler.complete(second.step_id, 0.2)] == [0]
    assert ids(scheduler.poll(0.2).step) == [1]


def test_the_blocked_first_is_not_overtaken(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs, kv_tokens=64, extent_tokens=16)
    for i, prompt in enumerate((20, 40, 5)):
        scheduler.submit(a_query(i, prompt=prompt, outputs=2), 0.0)
    assert ids(scheduler.poll(0.0).step) == [0]


@pytest.mark.parametrize("ahead", [1, 40])
def test_what_is_begun_goes_on_though_those_before_it_find_no_place(
    decoder_costs: IterationCosts, ahead: int
):
    scheduler = scheduler_of(decoder_costs, "edf@budget=16", max_running=1)
    scheduler.submit(a_query(0, prompt=40, outputs=1), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    for i in range(1, ahead + 1):  # all due before the one that has the place
        scheduler.submit(a_query(i, first_deadline_s=0.5), 0.1)
    scheduler.complete(step.step_id, 0.2)
    assert ids(scheduler.poll(0.2).step) == [0]


def test_a_begun_prompt_that_stands_back_goes_on_behind_others_that_do(
    decoder_costs: IterationCosts,
):
    scheduler = StreamScheduler(decoder_costs, LosesAll(), max_running=1)
    scheduler.submit(a_query(0, prompt=40, outputs=1), 0.0)
    scheduler.submit(a_query(1, prompt=40, outputs=1), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert ids(step) == [0]
    stream = scheduler._live[1]
    scheduler._queue.remove(scheduler._live[0])
    scheduler._queue.remove(stream)
    scheduler._queue.add(stream, 0.0)
    scheduler._queue.add(scheduler._live[0], 0.0)  # the one that has the place is now the last
    scheduler.submit(a_query(2, first_deadline_s=9.0), 0.1)
    scheduler.complete(step.step_id, 0.2)
    assert ids(scheduler.poll(0.2).step) == [0]


def test_the_latest_due_is_preempted_and_computed_again(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs, kv_tokens=64, extent_tokens=16)
    scheduler.submit(a_query(0, prompt=15, outputs=30), 0.0)
    scheduler.submit(a_query(1, prompt=15, outputs=30, first_deadline_s=9.0), 0.0)
    ended = run_to_the_end(scheduler)
    assert ended[0].preemptions == 0
    assert ended[1].preemptions == 1
    assert len(ended[1].output_s) == 30


def run_to_the_end(scheduler: StreamScheduler) -> dict[int, StreamOutcome]:
    ended, now_s = list[StreamOutcome](), 0.0
    while len(scheduler):
        step, dropped = scheduler.poll(now_s)
        ended += dropped
        assert step is not None
        now_s += step.expected_s
        ended += scheduler.complete(step.step_id, now_s)
    return {outcome.query_id: outcome for outcome in ended}


def test_refusals_say_why(decoder_costs: IterationCosts):
    scheduler = scheduler_of(
        decoder_costs, kv_tokens=64, extent_tokens=16, max_running=1, max_waiting=1
    )

    def reason(query: StreamQuery) -> str | None:
        outcome = scheduler.submit(query, 0.0)
        return None if outcome is None else f"{outcome.status} {outcome.reason}"

    assert reason(a_query(0, prompt=60, outputs=5)) == "rejected too_long"
    assert reason(a_query(1, min_quality=1.1)) == "rejected infeasible"
    assert reason(a_query(2)) is None
    assert reason(a_query(3)) == "rejected queue_full"
    scheduler.drain()
    assert reason(a_query(4)) == "rejected draining"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": 0}, "prompt_tokens is 0"),
        ({"outputs": 0}, "max_tokens is 0"),
        ({"cached_tokens": 10}, "cached_tokens is 10, allowed 0 to one less"),
        ({"period_s": 0.0}, "period_s is 0.0"),
        ({"first_deadline_s": math.nan}, "NaN"),
    ],
)
def test_queries_that_cannot_be(decoder_costs: IterationCosts, change: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        scheduler_of(decoder_costs).submit(a_query(0, **change), 0.0)


def test_an_id_lives_once(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    scheduler.submit(a_query(0), 0.0)
    with pytest.raises(ValueError, match="query_id 0 waits or runs already"):
        scheduler.submit(a_query(0), 0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_running": 0}, "max_running is 0"),
        ({"max_waiting": 0}, "max_waiting is 0"),
        ({"relegated_share": 0.0}, "relegated_share is 0.0"),
        ({"kv_tokens": 100}, "an extent of 256 tokens in a capacity of 100"),
    ],
)
def test_settings_that_cannot_be(decoder_costs: IterationCosts, settings: Any, says: str):
    with pytest.raises(ValueError, match=says):
        scheduler_of(decoder_costs, **settings)


# --- ends ----------------------------------------------------------------------------------------


def test_an_end_token_ends_a_stream_and_frees_its_memory(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    scheduler.submit(a_query(0, outputs=50), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    (outcome,) = scheduler.complete(step.step_id, 0.1, ended={0})
    assert outcome.is_complete
    assert outcome.output_s == (0.1,)
    assert scheduler.kv.held_tokens == 0


def test_a_stream_cancelled_while_it_runs_is_gone_at_once(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    scheduler.submit(a_query(0), 0.0)
    scheduler.submit(a_query(1), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    outcome = scheduler.cancel(0, 0.05)
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("dropped", "cancelled")
    assert scheduler.cancel(0, 0.05) is None
    scheduler.complete(step.step_id, 0.1)
    assert ids(scheduler.poll(0.1).step) == [1]


def test_a_hard_deadline_drops_a_stream_wherever_it_is(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs, max_running=1)
    scheduler.submit(a_query(0, outputs=9, deadline_s=1.0), 0.0)
    scheduler.submit(a_query(1, deadline_s=1.0), 0.0)
    assert scheduler.next_wakeup_s() == 1.0
    step = scheduler.poll(0.0).step
    assert step is not None
    scheduler.complete(step.step_id, 1.5)
    ended = scheduler.poll(1.5).dropped
    assert [(o.query_id, o.status, o.reason) for o in ended] == [
        (0, "dropped", "expired"),
        (1, "dropped", "expired"),
    ]
    assert ended[0].output_s == (1.5,)
    assert ended[0].fluidity == 0.0
    assert scheduler.next_wakeup_s() is None


def test_a_failed_iteration_fails_its_streams_only(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs, max_running=1)
    scheduler.submit(a_query(0), 0.0)
    scheduler.submit(a_query(1), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    (outcome,) = scheduler.fail(step.step_id, 0.1, "boom")
    assert (outcome.query_id, outcome.status, outcome.reason) == (0, "failed", "boom")
    assert ids(scheduler.poll(0.1).step) == [1]
    with pytest.raises(ValueError, match=r"iteration 0 does not run \(running: 1\)"):
        scheduler.complete(0, 0.2)


def test_one_iteration_at_a_time(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    scheduler.submit(a_query(0), 0.0)
    assert scheduler.poll(0.0).step is not None
    assert scheduler.poll(0.0) == StepDispatch(None, ())


# --- policies that fail, floors, prefixes -------------------------------------------------------


class Decides:
    """A policy with one answer."""

    name = "decides"
    granule = 1
    ranks_age = False

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def rank(self, prompt: object, now_s: float) -> float:
        return 0.0

    def relegates(self, prompt: object, view: object, now_s: float) -> bool:
        return False

    def decide(self, view: object, now_s: float) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class LosesAll(Decides):
    """Takes every stream that is due within 5 s for lost."""

    def __init__(self) -> None:
        super().__init__(StreamDecision("e1", 16))

    def relegates(self, prompt: Any, view: object, now_s: float) -> bool:
        return prompt.due_s < 5.0


@pytest.mark.parametrize("answer", [RuntimeError("odd"), None, StreamDecision("e9", 8)])
def test_a_policy_that_fails_loses_no_stream(decoder_costs: IterationCosts, answer: object):
    scheduler = StreamScheduler(decoder_costs, Decides(answer))
    scheduler.submit(a_query(0), 0.0)
    with pytest.raises(StreamPolicyError, match="policy 'decides' failed.*1 streams stay"):
        scheduler.poll(0.0)
    scheduler.reconfigure(0.0, policy=create_stream_policy("fcfs", decoder_costs))
    assert ids(scheduler.poll(0.0).step) == [0]


def test_a_policy_that_leaves_no_room_does_not_stop_the_device(decoder_costs: IterationCosts):
    scheduler = StreamScheduler(decoder_costs, Decides(StreamDecision("e1", 0)))
    scheduler.submit(a_query(0, prompt=3, outputs=1), 0.0)
    lengths = []
    for now_s in (0.0, 1.0, 2.0):
        step = scheduler.poll(now_s).step
        assert step is not None
        lengths.append(step.num_tokens)
        scheduler.complete(step.step_id, now_s + 0.5)
    assert lengths == [1, 1, 1]
    assert len(scheduler) == 0


def test_a_floor_lifts_the_whole_iteration(decoder_costs: IterationCosts):
    scheduler = StreamScheduler(decoder_costs, Decides(StreamDecision("e0.5", 64)))
    scheduler.submit(a_query(0, prompt=4, outputs=9), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert step.subnet_id == "e0.5"
    scheduler.complete(step.step_id, 0.1)
    scheduler.submit(a_query(1, prompt=4, outputs=9, min_quality=0.6), 0.1)
    step = scheduler.poll(0.1).step
    assert step is not None
    assert (step.subnet_id, ids(step)) == ("e0.75", [0, 1])


def test_the_cached_part_of_a_prompt_is_not_computed(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    scheduler.submit(a_query(0, prompt=100, outputs=1, cached_tokens=75), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert step.chunks == ((0, 75, 25, True),)


# --- nobody starves ------------------------------------------------------------------------------


def test_the_relegated_get_their_share_of_what_others_get(decoder_costs: IterationCosts):
    """A long prompt that can't be in time, behind short ones that never let up."""
    scheduler = scheduler_of(decoder_costs, "slackwidth")
    scheduler.submit(a_query(0, prompt=400, outputs=1, first_deadline_s=0.1), 0.0)
    now_s, i, others = 0.0, 1, 0
    while any(stream == 0 for stream in scheduler._live) and others < 100_000:
        while scheduler.num_waiting - scheduler.num_relegated < 4:
            scheduler.submit(a_query(i, now_s, 32, 1, first_deadline_s=now_s + 5.0), now_s)
            i += 1
        step = scheduler.poll(now_s).step
        assert step is not None
        others += sum(c.length for c in step.chunks if c.query_id)
        now_s += step.expected_s
        scheduler.complete(step.step_id, now_s)
    assert scheduler.num_relegated == 0
    assert others <= 400 / 0.1 + 2 * 256
    assert others > 400  # it did stand back


def test_a_long_prompt_by_lars_ends_though_short_ones_never_let_up(
    decoder_costs: IterationCosts,
):
    scheduler = scheduler_of(decoder_costs, "lars@long_tokens=200")
    scheduler.submit(a_query(0, prompt=3000, outputs=1, first_deadline_s=30.0), 0.0)
    now_s, i, steps = 0.0, 1, 0
    while 0 in scheduler._live and steps < 2000:
        while scheduler.num_waiting < 4:
            scheduler.submit(a_query(i, now_s, 64, 1, first_deadline_s=now_s + 1.0), now_s)
            i += 1
        step = scheduler.poll(now_s).step
        assert step is not None
        now_s += step.expected_s
        scheduler.complete(step.step_id, now_s)
        steps += 1
    assert 0 not in scheduler._live
    assert now_s < 60.0  # not much beyond its deadline


def test_one_long_prompt_at_a_time_with_its_share(decoder_costs: IterationCosts):
    decision = StreamDecision("e1", 100, long_tokens=50, long_share=0.5)
    scheduler = StreamScheduler(decoder_costs, Decides(decision))
    for i, prompt in enumerate((500, 500, 30, 30, 30)):
        scheduler.submit(a_query(i, prompt=prompt), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert {c.query_id: c.length for c in step.chunks} == {2: 30, 3: 20, 0: 50}


def test_a_long_prompt_takes_what_the_short_ones_leave(decoder_costs: IterationCosts):
    decision = StreamDecision("e1", 100, long_tokens=50, long_share=0.5)
    scheduler = StreamScheduler(decoder_costs, Decides(decision))
    for i, prompt in enumerate((500, 30)):
        scheduler.submit(a_query(i, prompt=prompt), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert {c.query_id: c.length for c in step.chunks} == {1: 30, 0: 70}


def test_a_long_prompt_that_is_begun_is_finished_before_the_next(decoder_costs: IterationCosts):
    """By relative slack alone two would take turns, and both would come late."""
    scheduler = scheduler_of(decoder_costs, "lars@long_tokens=200")
    for i in range(2):
        scheduler.submit(a_query(i, prompt=2000, outputs=1, first_deadline_s=30.0 - i), 0.0)
    now_s, order = 0.0, list[int]()
    while len(scheduler):
        step = scheduler.poll(now_s).step
        assert step is not None
        order += ids(step)
        now_s += step.expected_s
        scheduler.complete(step.step_id, now_s)
    assert order == sorted(order, reverse=True)  # the second is due first


def test_a_prompt_is_long_by_all_of_its_work(decoder_costs: IterationCosts):
    """Nearly done, it still has but its share while others wait."""
    decision = StreamDecision("e1", 100, long_tokens=50, long_share=0.5)
    scheduler = StreamScheduler(decoder_costs, Decides(decision))
    scheduler.submit(a_query(0, prompt=190), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    scheduler.complete(step.step_id, 0.1)
    scheduler.submit(a_query(1, 0.1, prompt=45), 0.1)
    step = scheduler.poll(0.1).step
    assert step is not None
    assert {c.query_id: c.length for c in step.chunks} == {1: 45, 0: 55}
    scheduler.complete(step.step_id, 0.2)
    for i in (2, 3, 4):
        scheduler.submit(a_query(i, 0.2, prompt=40), 0.2)
    step = scheduler.poll(0.2).step
    assert step is not None
    assert {c.query_id: c.length for c in step.chunks if c.query_id != 1} == {2: 40, 3: 10, 0: 35}


# --- costs that are not those of the device ------------------------------------------------------


def spent(scheduler: StreamScheduler, slower: float, iterations: int) -> None:
    """Run a stream on a device that takes `slower` times as long as profiled."""
    now_s, given = 0.0, scheduler.costs
    scheduler.submit(a_query(0, prompt=20, outputs=10_000), 0.0)
    for _ in range(iterations):
        step = scheduler.poll(now_s).step
        assert step is not None
        work = IterationWork.of((c.start, c.length, c.samples) for c in step.chunks)
        now_s += slower * given.seconds(step.subnet_id, work)
        scheduler.complete(step.step_id, now_s)


@pytest.mark.parametrize("slower", [0.5, 1.0, 1.7, 4.0])
def test_costs_are_corrected_by_what_iterations_take(decoder_costs: IterationCosts, slower: float):
    scheduler = scheduler_of(decoder_costs, correct_costs=True)
    assert scheduler.cost_factor == 1.0
    spent(scheduler, slower, 400)
    assert scheduler.cost_factor == pytest.approx(slower, rel=0.12)
    work = IterationWork(1, 1, 1, 100)
    expected = decoder_costs.scaled(scheduler.cost_factor or 0.0).seconds("e1", work)
    assert scheduler.costs.seconds("e1", work) == pytest.approx(expected)
    scheduler.reconfigure(1e6, costs=decoder_costs.scaled(2.0))
    assert scheduler.costs.seconds("e1", work) == pytest.approx(2 * expected)


def test_costs_stay_as_given_unless_asked(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    spent(scheduler, 3.0, 50)
    assert scheduler.cost_factor is None
    assert scheduler.costs is decoder_costs


# --- the log -------------------------------------------------------------------------------------


def test_a_log_of_other_settings_and_an_altered_one_are_told(decoder_costs: IterationCosts):
    log = io.StringIO()
    policy = create_stream_policy("fcfs", decoder_costs)
    recorder = RecordingStreamScheduler(decoder_costs, policy, sink=log)
    recorder.submit(a_query(0), 0.0)
    recorder.poll(0.0)
    recorder.reconfigure(0.05, costs=decoder_costs.scaled(1.5))
    recorder.complete(0, 0.1)
    recorder.poll(0.1)
    lines = log.getvalue().splitlines()
    assert replay_stream_log(lines, scheduler_of(decoder_costs)) == 5
    with pytest.raises(LogError, match="recorded with max_running 64, the scheduler has 2"):
        replay_stream_log(lines, scheduler_of(decoder_costs, max_running=2))
    lines[2] = lines[2].replace('"e1"', '"e0.5"')
    with pytest.raises(ReplayDifferenceError, match="line 3"):
        replay_stream_log(lines, scheduler_of(decoder_costs))


def test_new_costs_must_have_the_same_widths(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    with pytest.raises(ValueError, match=r"the new costs have widths e1, .* for e0.5, e0.75, e1"):
        scheduler.reconfigure(0.0, costs=decoder_costs.select(["e1"]))
