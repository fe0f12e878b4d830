from __future__ import annotations

import numpy as np
import pytest

from slackfit.query import Outcome
from traces.report.burst_zoom import burst_zoom


def outcomes(times_s: np.ndarray, wait_s: float = 0.0) -> list[Outcome]:
    return [
        Outcome(i, "on_time", "", t, t + 1.0, t + wait_s, t + wait_s + 0.01, "s", 0.9, 1, 0)
        for i, t in enumerate(times_s.tolist())
    ]


def test_the_zoom_lies_on_the_burst_and_counts_what_arrived_there():
    even, burst = np.arange(0, 100, 0.5), np.linspace(60, 62, 400, endpoint=False)
    times_s = np.sort(np.concatenate([even, burst]))
    zoom = burst_zoom(outcomes(times_s), 100.0)
    start_s, end_s = zoom["start_s"], zoom["start_s"] + zoom["length_s"]
    assert start_s <= 60
    assert end_s >= 62
    inside = (times_s >= start_s) & (times_s < end_s)
    assert sum(zoom["series"]["arrived"]) == inside.sum()
    assert len(zoom["series"]["t_s"]) == 80
    assert zoom["series"]["t_s"][0] == start_s


def test_its_queue_knows_of_those_that_waited_before():
    times_s = np.concatenate([np.full(150, 40.0), np.linspace(50, 51, 200, endpoint=False)])
    waiting = outcomes(times_s[:150], wait_s=50.0) + outcomes(times_s[150:])
    zoom = burst_zoom(waiting, 100.0)
    assert zoom["start_s"] > 40
    assert zoom["series"]["queue_depth"] == [150] * 80


@pytest.mark.parametrize("count", [0, 99])
def test_a_handful_of_queries_has_no_zoom(count):
    assert burst_zoom(outcomes(np.linspace(0, 1, count)), 1.0) is None
