"""A run is judged by each query's own SLO: the shortest of them is not everybody's."""

from __future__ import annotations

import numpy as np

from traces.open_loop.answers import Answer
from traces.open_loop.result import make_result
from traces.open_loop.target import ReplayReply
from traces.trace import Trace


def result_of(lag_s: np.ndarray, slo_s: np.ndarray, max_lag_s: float | None = None):
    trace = Trace(arrival_s=np.arange(float(lag_s.size)), duration_s=float(lag_s.size))
    reply = ReplayReply(status="ok", subnet_id="s", accuracy=0.9)
    answers = [
        Answer(i, float(i), i + lag, i + lag + 0.001, reply, None)
        for i, lag in enumerate(lag_s.tolist())
    ]
    return make_result(trace, answers, slo_s=slo_s, warmup_s=0.0, ended_s=None, max_lag_s=max_lag_s)


def test_one_short_deadline_does_not_make_a_run_invalid():
    lag_s, slo_s = np.full(1000, 0.0003), np.full(1000, 0.1)
    slo_s[:5] = 0.001  # their lag is a third of the SLO; that of 99.5 % is a three hundredth
    assert result_of(lag_s, slo_s).is_valid
    slo_s[:20] = 0.001
    assert (
        "lag p99 is 30% of the query's own SLO, above 10%" in result_of(lag_s, slo_s).invalid_reason
    )


def test_long_deadlines_do_not_hide_lag_behind_short_ones():
    lag_s = np.where(np.arange(1000) % 2, 0.05, 0.0)
    assert result_of(lag_s, np.full(1000, 1.0)).is_valid
    assert not result_of(lag_s, np.where(np.arange(1000) % 2, 0.1, 10.0)).is_valid


def test_a_bound_that_was_given_is_one_for_all():
    lag_s = np.full(100, 0.02)
    reason = result_of(lag_s, np.full(100, 10.0), max_lag_s=0.01).invalid_reason
    assert "lag p99 20.0 ms is above 10.0 ms" in reason
    assert result_of(lag_s, np.full(100, 0.001), max_lag_s=0.03).is_valid
