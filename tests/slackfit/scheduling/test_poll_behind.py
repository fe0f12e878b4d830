"""A batch decided while the one before it runs: when, for when, and what it is judged by."""

from __future__ import annotations

import io
import json

import pytest

from slackfit.policies import create_policy
from slackfit.query import Decision, Query
from slackfit.scheduling.record import RecordingScheduler, replay_log
from slackfit.scheduling.scheduler import Scheduler


def query(query_id: int, deadline_s: float = 9.0, **wishes) -> Query:
    return Query(query_id=query_id, arrival_s=0.0, deadline_s=deadline_s, **wishes)


def waiting(scheduler: Scheduler, count: int, deadline_s: float = 9.0, first: int = 0) -> Scheduler:
    for query_id in range(first, first + count):
        assert scheduler.submit(query(query_id, deadline_s), 0.0) is None
    return scheduler


@pytest.mark.parametrize(
    ("size", "came", "comes", "fills"),
    [
        (4, 4, 4, True),  # the largest batch, and another one
        (4, 4, 3, False),  # those to come would make it larger
        (4, 3, 3, False),  # nobody was left behind: there is no load
        (2, 4, 0, True),  # smaller ones, as the policy likes them
        (2, 3, 0, False),
        (2, 3, 1, True),
    ],
)
def test_another_is_decided_when_waiting_would_not_make_it_larger(
    trio, planned, size, came, comes, fills
):
    plan = planned(Decision("small", size), Decision("small", size))
    scheduler = waiting(Scheduler(trio, plan), came)
    assert not scheduler.fills_another(), "a free worker has nothing to wait for"
    assert scheduler.poll(0.0).batch is not None
    waiting(scheduler, comes, first=came)
    left = len(scheduler)
    assert scheduler.fills_another() == fills
    dispatch = scheduler.poll_behind(0.0)
    assert (dispatch.batch is not None) == fills
    assert len(scheduler) == left - size * fills
    assert scheduler.num_running == 1 + fills


def test_it_begins_when_the_one_before_should_end_and_then_when_it_ends(trio, planned):
    plan = planned(Decision("large", 4), Decision("small", 4))
    scheduler = waiting(Scheduler(trio, plan), 8)
    first = scheduler.poll(0.0).batch
    assert (first.start_s, first.expected_latency_s) == (0.0, 0.16)
    second = scheduler.poll_behind(0.05).batch
    assert (second.start_s, second.expected_latency_s) == (0.16, 0.04)
    outlook = scheduler.outlook(0.05)
    assert outlook.finish_s == pytest.approx(0.16 + 0.04 - 0.05 + 0.01), "behind both, and alone"
    scheduler.complete(first.batch_id, 0.2)
    assert scheduler.outlook(0.2).finish_s == pytest.approx(0.04 + 0.01)
    assert not scheduler.poll(0.2).batch, "it is busy with the second"
    outcomes = scheduler.complete(second.batch_id, 0.25)
    assert {(outcome.start_s, outcome.finish_s) for outcome in outcomes} == {(0.2, 0.25)}
    assert scheduler.num_running == 0


def test_one_that_is_overdue_is_taken_to_end_now(trio, planned):
    plan = planned(Decision("small", 4), Decision("small", 4))
    scheduler = waiting(Scheduler(trio, plan), 8)
    scheduler.poll(0.0)
    assert scheduler.poll_behind(0.3).batch.start_s == 0.3


def test_slack_and_what_is_hopeless_are_of_the_moment_when_it_begins(trio):
    """The largest subnet takes 40 ms at batch 1, a full batch of the smallest 40 ms."""
    policy = create_policy("slackfit", trio)
    scheduler = waiting(Scheduler(trio, policy, drop_hopeless=True), 4, 0.041)
    assert scheduler.poll(0.0).batch.subnet_id == "small"
    waiting(scheduler, 2, 0.0499, first=4)  # not in time behind the first, alone in time
    waiting(scheduler, 4, 0.0801, first=6)
    dispatch = scheduler.poll_behind(0.001)
    assert [(o.query_id, o.status, o.reason, o.finish_s) for o in dispatch.dropped] == [
        (4, "dropped", "infeasible", 0.001),
        (5, "dropped", "infeasible", 0.001),
    ]
    assert dispatch.batch.subnet_id == "small", "of 80 ms half are left"
    outcomes = scheduler.complete(0, 0.04) + scheduler.complete(1, 0.08)
    assert {outcome.status for outcome in outcomes} == {"on_time"}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_correction_learns_the_time_of_a_batch_not_its_wait(trio, scale):
    """Two are always under way: from its decision to its end a batch takes two batches' time."""
    scheduler = Scheduler(trio, create_policy("fixed:small", trio), correct_latency=True)
    now_s, ids = 0.0, []
    for number in range(400):
        waiting(scheduler, 8, 1e9, first=8 * number)
        if not ids:
            ids.append(scheduler.poll(now_s).batch.batch_id)
        ids.append(scheduler.poll_behind(now_s).batch.batch_id)
        now_s += 0.04 * scale
        scheduler.complete(ids.pop(0), now_s)
    assert scheduler.profile.latency_s("small", 4) == pytest.approx(0.04 * scale, rel=0.11)


def test_a_batch_that_fails_leaves_the_one_behind_it_as_it_is(trio, planned):
    plan = planned(Decision("small", 4), Decision("small", 4), Decision("small", 4))
    scheduler = waiting(Scheduler(trio, plan), 12)
    scheduler.poll(0.0)
    scheduler.poll_behind(0.0)
    assert {o.status for o in scheduler.fail(0, 0.05, "broken")} == {"failed"}
    third = scheduler.poll_behind(0.05).batch
    assert third.start_s == pytest.approx(0.09), "the second began when the first had failed"
    assert {o.status for o in scheduler.complete(1, 0.09)} == {"on_time"}
    assert {o.status for o in scheduler.complete(2, 0.13)} == {"on_time"}


def test_a_worker_that_ended_its_second_first_is_busy_with_its_first(trio, planned):
    plan = planned(Decision("small", 4), Decision("small", 4), Decision("small", 4))
    scheduler = waiting(Scheduler(trio, plan), 12)
    scheduler.poll(0.0)
    scheduler.poll_behind(0.0)
    scheduler.complete(1, 0.01)
    assert scheduler.poll(0.01).batch is None
    assert scheduler.poll_behind(0.01).batch.start_s == pytest.approx(0.04)


def test_recorded_calls_replay(trio, planned):
    sink = io.StringIO()
    decisions = [Decision("small", 4)] * 3

    scheduler = RecordingScheduler(trio, planned(*decisions), sink=sink)
    waiting(scheduler, 12)
    scheduler.poll(0.0)
    scheduler.poll_behind(0.01)
    scheduler.complete(0, 0.05)
    scheduler.poll_behind(0.05)
    scheduler.complete(1, 0.09)
    scheduler.complete(2, 0.13)
    lines = sink.getvalue().splitlines()
    assert [json.loads(line).get("call") for line in lines].count("poll_behind") == 2
    assert replay_log(lines, Scheduler(trio, planned(*decisions))) == 18


@pytest.mark.parametrize("worker_id", [-1, 1])
def test_an_unknown_worker_is_refused_as_by_poll(trio, planned, worker_id):
    scheduler = waiting(Scheduler(trio, planned(Decision("small", 4))), 8)
    assert scheduler.poll(0.0).batch is not None
    for ask in (
        lambda: scheduler.poll(0.0, worker_id),
        lambda: scheduler.fills_another(worker_id),
        lambda: scheduler.poll_behind(0.0, worker_id),
    ):
        with pytest.raises(ValueError, match=f"worker {worker_id} is unknown, allowed 0 to 0"):
            ask()
    assert len(scheduler) == 4
