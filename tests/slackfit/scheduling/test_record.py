"""A recorded run, decided again."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.query import Decision, Query
from slackfit.scheduling.record import (
    LogError,
    RecordingScheduler,
    ReplayDifferenceError,
    replay_log,
)
from slackfit.scheduling.scheduler import PolicyError, Scheduler
from slackfit.simulation.simulate import simulate


def query(query_id: int, deadline_s: float = 1.0, **wishes) -> Query:
    return Query(query_id=query_id, arrival_s=0.0, deadline_s=deadline_s, **wishes)


def eventful_log(trio, planned) -> str:
    """A log with every kind of call, an error of the policy and one of the caller."""
    sink = io.StringIO()
    policy = planned(Decision("small", 1), RuntimeError("no"), Decision("large", 2))
    scheduler = RecordingScheduler(trio, policy, sink=sink, num_workers=2, max_queue=3)
    scheduler.submit_all([query(i, deadline_s=0.1 + 0.1 / (i + 1)) for i in range(5)])
    scheduler.poll(1 / 3)
    with pytest.raises(PolicyError):
        scheduler.poll(0.34)
    with pytest.raises(ValueError, match="batch 9"):
        scheduler.complete(9, 0.35)
    scheduler.cancel(1, 0.36)
    scheduler.poll(0.37, worker_id=1)
    scheduler.complete(0, 0.4)
    scheduler.fail(1, 0.5, "device lost")
    scheduler.reconfigure(policy=create_policy("fixed:small", trio), drop_hopeless=True)
    scheduler.submit(query(9, 2.0, min_accuracy=0.75), 0.6)
    scheduler.poll(0.7)
    scheduler.drain()
    scheduler.submit(query(10, float("inf")), 0.8)
    return sink.getvalue()


def fresh(trio, planned) -> Scheduler:
    policy = planned(Decision("small", 1), RuntimeError("no"), Decision("large", 2))
    return Scheduler(trio, policy, num_workers=2, max_queue=3)


def test_a_log_replays_on_a_fresh_scheduler(trio, planned):
    lines = eventful_log(trio, planned).splitlines()
    policies = {"fixed:small": create_policy("fixed:small", trio)}
    assert replay_log(lines, fresh(trio, planned), policies=policies) == len(lines) - 1 == 17


def test_a_simulated_run_replays_from_its_file(tmp_path, resnet):
    path = tmp_path / "calls.jsonl"
    arrival_s = np.cumsum(np.random.default_rng(1).gamma(0.25, 4 / 9000, 3000))

    settings = {"num_workers": 4, "drop_hopeless": True}

    def scheduler() -> Scheduler:
        return Scheduler(resnet, create_policy("slackfit", resnet), **settings)

    with path.open("w", encoding="utf-8") as sink:
        recorded = simulate(
            arrival_s,
            resnet,
            create_policy("slackfit", resnet),
            slo_s=0.036,
            scheduler=RecordingScheduler(
                resnet, create_policy("slackfit", resnet), sink=sink, **settings
            ),
        )
    plain = simulate(
        arrival_s, resnet, create_policy("slackfit", resnet), slo_s=0.036, scheduler=scheduler()
    )
    assert recorded == plain
    assert replay_log(path, scheduler()) > 3000


def test_the_first_difference_is_reported(resnet):
    sink = io.StringIO()
    recorder = RecordingScheduler(resnet, create_policy("slackfit", resnet), sink=sink)
    recorder.submit(query(0), 0.0)
    recorder.poll(0.0)
    lines = sink.getvalue().splitlines()
    line = json.loads(lines[2])
    line["result"][0][2] = "resnet-73.82"
    with pytest.raises(ReplayDifferenceError) as caught:
        replay_log(
            [*lines[:2], json.dumps(line)], Scheduler(resnet, create_policy("slackfit", resnet))
        )
    assert caught.value.line == 3
    assert caught.value.call == {"call": "poll", "args": [0.0, None]}
    assert str(caught.value).startswith('line 3: {"call": "poll", "args": [0.0, null]} gave ')
    assert '"resnet-80.16"' in json.dumps(caught.value.replayed)
    assert '"resnet-73.82"' in json.dumps(caught.value.recorded)


def test_a_call_within_a_call_is_not_written(trio, planned):
    sink = io.StringIO()
    recorder = RecordingScheduler(trio, planned(), sink=sink)
    recorder.submit_all([query(0), query(1)])
    assert len(recorder.cancel_all(0.1)) == 2
    calls = [json.loads(line).get("call") for line in sink.getvalue().splitlines()]
    assert calls == [None, "submit", "submit", "cancel_all"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "line 1: not JSON (Expecting value: line 1 column 1 (char 0))"),
        (
            lambda lines: [lines[0].replace('"num_workers":2', '"num_workers":8'), *lines[1:]],
            "line 1: the log was recorded with num_workers 8, the scheduler has 2",
        ),
        (lambda lines: [lines[0], "[1]"], "line 2: expected a JSON object, got [1]"),
        (
            lambda lines: [lines[0], '{"call":"submit"}'],
            "line 2: a call needs call, args, and result or error",
        ),
        (
            lambda lines: [lines[0], '{"call":"jump","args":[],"result":null}'],
            "line 2: call 'jump' is unknown, allowed submit, cancel, poll, poll_behind, "
            "complete, fail, retire, cancel_all, reconfigure, drain",
        ),
        (
            lambda lines: lines,
            "the log switches to policy 'fixed:small', which was not given (given: none)",
        ),
    ],
)
def test_a_log_that_cannot_be_replayed_says_why(trio, planned, change, message):
    lines = change(eventful_log(trio, planned).splitlines())
    with pytest.raises(LogError, match=f"^{re.escape(message)}$"):
        replay_log(lines, fresh(trio, planned))
