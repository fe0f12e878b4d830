"""The stream scheduler: admission, ends, policies that fail, floors, prefixes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.schedule_view import StreamPolicyError
from slackfit.scheduling.streams.stream_scheduler import StepDispatch, StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_policy import StreamDecision
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery


def a_query(i: int, at_s: float = 0.0, prompt: int = 10, outputs: int = 3, **more: Any):
    fields = {"first_deadline_s": at_s + 1.0, "period_s": 0.25, **more}
    return StreamQuery(i, at_s, prompt, outputs, **fields)


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
    decoder_costs: IterationCosts, decides: Any
):
    class LosesAll(decides):
        """Takes every stream that is due within 5 s for lost."""

        def relegates(self, prompt: Any, view: object, now_s: float) -> bool:
            return prompt.due_s < 5.0

    policy = LosesAll(StreamDecision("e1", 16))
    scheduler = StreamScheduler(decoder_costs, policy, max_running=1)
    scheduler.submit(a_query(0, prompt=40, outputs=1), 0.0)
    scheduler.submit(a_query(1, prompt=40, outputs=1), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert ids(step) == [0]
    stream = scheduler._live[1]
    scheduler._composer.queue.remove(scheduler._live[0])
    scheduler._composer.queue.remove(stream)
    scheduler._composer.queue.add(stream, 0.0)
    scheduler._composer.queue.add(scheduler._live[0], 0.0)  # who has the place is the last
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


@pytest.mark.parametrize("answer", [RuntimeError("odd"), None, StreamDecision("e9", 8)])
def test_a_policy_that_fails_loses_no_stream(
    decoder_costs: IterationCosts, answer: object, decides: Any
):
    scheduler = StreamScheduler(decoder_costs, decides(answer))
    scheduler.submit(a_query(0), 0.0)
    with pytest.raises(StreamPolicyError, match="policy 'decides' failed.*1 streams stay"):
        scheduler.poll(0.0)
    scheduler.reconfigure(0.0, policy=create_stream_policy("fcfs", decoder_costs))
    assert ids(scheduler.poll(0.0).step) == [0]


def test_a_policy_that_leaves_no_room_does_not_stop_the_device(
    decoder_costs: IterationCosts, decides: Any
):
    scheduler = StreamScheduler(decoder_costs, decides(StreamDecision("e1", 0)))
    scheduler.submit(a_query(0, prompt=3, outputs=1), 0.0)
    lengths = []
    for now_s in (0.0, 1.0, 2.0):
        step = scheduler.poll(now_s).step
        assert step is not None
        lengths.append(step.num_tokens)
        scheduler.complete(step.step_id, now_s + 0.5)
    assert lengths == [1, 1, 1]
    assert len(scheduler) == 0


def test_a_floor_lifts_the_whole_iteration(decoder_costs: IterationCosts, decides: Any):
    scheduler = StreamScheduler(decoder_costs, decides(StreamDecision("e0.5", 64)))
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


def test_what_was_cached_and_is_gone_is_computed(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    scheduler.submit(a_query(0, prompt=100, cached_tokens=90), 0.0)
    scheduler.recompute(0, 0.0)
    scheduler.recompute(1, 0.0)  # is not there
    step = scheduler.poll(0.0).step
    assert step is not None
    assert step.chunks[0].start == 0
    with pytest.raises(ValueError, match="query 0 was begun"):
        scheduler.recompute(0, 0.0)
    outcomes = scheduler.cancel_all(0.1)
    assert [outcome.query.cached_tokens for outcome in outcomes] == [0]
