from __future__ import annotations

import numpy as np
import pytest

from traces.open_loop.answers import Answer
from traces.open_loop.door import (
    BURST,
    bursts,
    door_cost,
    single_queries,
    through_the_door,
)
from traces.open_loop.target import ReplayReply
from traces.trace import TraceError


def answers(arrival_s: np.ndarray, over_s, status: str = "ok") -> list[Answer]:
    """Answers that took `over_s(i)` besides 5 ms of waiting and 20 ms of execution."""
    reply = ReplayReply(status=status, queue_s=0.005, execution_s=0.020)
    return [
        Answer(i, t, t + 1e-4, t + over_s(i) + 0.025, reply, None)
        for i, t in enumerate(arrival_s.tolist())
    ]


def test_the_slope_over_a_burst_is_the_doors_time_of_one_request():
    single, burst = single_queries(0.05), bursts(0.1)
    assert np.diff(single.arrival_s).min() == pytest.approx(0.1)  # none meets another
    assert len(burst) % BURST == 0
    assert np.unique(burst.arrival_s)[:2].tolist() == [0.0, 0.2]
    found = door_cost(
        answers(single.arrival_s, lambda i: 0.003),
        # What else the machine does adds to all bursts but one.
        answers(
            burst.arrival_s,
            lambda i: 0.002 + 0.0004 * (i % BURST) * (1 if BURST <= i < 2 * BURST else i),
        ),
    )
    assert found.request_s == pytest.approx(0.0004)
    assert found.idle_s == pytest.approx(0.003 + 0.005 - 1e-4)  # all but execution, from the send
    assert found.answer_s == pytest.approx(found.idle_s - found.request_s)


def test_a_door_is_never_faster_than_nothing_and_refused_queries_tell_nothing():
    single, burst = single_queries(0.05), bursts(0.1)
    good = answers(single.arrival_s, lambda i: 0.003)
    assert door_cost(good, answers(burst.arrival_s, lambda i: 0.1 - i % BURST * 1e-3))[1] == 0.0
    with pytest.raises(TraceError, match="answered too few of the queries that measure its door"):
        door_cost(good, answers(burst.arrival_s, lambda i: 0.0, status="dropped"))


def test_a_door_takes_one_after_the_other():
    arrival_s = np.cumsum(np.random.default_rng(0).gamma(0.3, 0.01, 500))
    expected, free_s = [], 0.0
    for at_s in arrival_s.tolist():
        free_s = max(at_s, free_s) + 0.003
        expected.append(free_s)
    assert through_the_door(arrival_s, 0.003) == pytest.approx(expected)
