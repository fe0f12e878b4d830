"""Whose prompt is computed next: nobody starves, long ones have their share."""

from __future__ import annotations

from typing import Any

from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_policy import StreamDecision
from slackfit.streams.stream_query import Step, StreamQuery


def a_query(i: int, at_s: float = 0.0, prompt: int = 10, outputs: int = 3, **more: Any):
    fields = {"first_deadline_s": at_s + 1.0, "period_s": 0.25, **more}
    return StreamQuery(i, at_s, prompt, outputs, **fields)


def scheduler_of(costs: IterationCosts, policy: str = "fcfs", **settings: Any) -> StreamScheduler:
    return StreamScheduler(costs, create_stream_policy(policy, costs), **settings)


def ids(step: Step | None) -> list[int]:
    return [] if step is None else [chunk.query_id for chunk in step.chunks]


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


def test_one_long_prompt_at_a_time_with_its_share(decoder_costs: IterationCosts, decides: Any):
    decision = StreamDecision("e1", 100, long_tokens=50, long_share=0.5)
    scheduler = StreamScheduler(decoder_costs, decides(decision))
    for i, prompt in enumerate((500, 500, 30, 30, 30)):
        scheduler.submit(a_query(i, prompt=prompt), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert {c.query_id: c.length for c in step.chunks} == {2: 30, 3: 20, 0: 50}


def test_a_long_prompt_takes_what_the_short_ones_leave(decoder_costs: IterationCosts, decides: Any):
    decision = StreamDecision("e1", 100, long_tokens=50, long_share=0.5)
    scheduler = StreamScheduler(decoder_costs, decides(decision))
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


def test_a_prompt_is_long_by_all_of_its_work(decoder_costs: IterationCosts, decides: Any):
    """Nearly done, it still has but its share while others wait."""
    decision = StreamDecision("e1", 100, long_tokens=50, long_share=0.5)
    scheduler = StreamScheduler(decoder_costs, decides(decision))
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
