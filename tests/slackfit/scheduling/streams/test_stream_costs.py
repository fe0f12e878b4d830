"""Costs that are not those of the device are corrected; recorded calls are decided again."""

from __future__ import annotations

import io
from typing import Any

import pytest

from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.call_log import LogError, ReplayDifferenceError
from slackfit.scheduling.streams.stream_record import RecordingStreamScheduler, replay_stream_log
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_query import StreamQuery


def a_query(i: int, at_s: float = 0.0, prompt: int = 10, outputs: int = 3, **more: Any):
    fields = {"first_deadline_s": at_s + 1.0, "period_s": 0.25, **more}
    return StreamQuery(i, at_s, prompt, outputs, **fields)


def scheduler_of(costs: IterationCosts, policy: str = "fcfs", **settings: Any) -> StreamScheduler:
    return StreamScheduler(costs, create_stream_policy(policy, costs), **settings)


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
    recorder.recompute(0, 0.0)
    recorder.poll(0.0)
    recorder.reconfigure(0.05, costs=decoder_costs.scaled(1.5))
    recorder.complete(0, 0.1)
    recorder.poll(0.1)
    lines = log.getvalue().splitlines()
    assert replay_stream_log(lines, scheduler_of(decoder_costs)) == 6
    with pytest.raises(LogError, match="recorded with max_running 64, the scheduler has 2"):
        replay_stream_log(lines, scheduler_of(decoder_costs, max_running=2))
    lines[3] = lines[3].replace('"e1"', '"e0.5"')
    with pytest.raises(ReplayDifferenceError, match="line 4"):
        replay_stream_log(lines, scheduler_of(decoder_costs))


def test_new_costs_must_have_the_same_widths(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs)
    with pytest.raises(ValueError, match=r"the new costs have widths e1, .* for e0.5, e0.75, e1"):
        scheduler.reconfigure(0.0, costs=decoder_costs.select(["e1"]))
