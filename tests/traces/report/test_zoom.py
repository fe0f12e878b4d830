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


def missed(outcome: Outcome) -> Outcome:
    return outcome._replace(status="dropped", start_s=None, subnet_id=None, accuracy=0.0)


def test_the_zoom_lies_on_the_misses_not_on_the_arrivals():
    """A burst that all survive at 60 s, and a quiet stretch at 20 s where everything is missed."""
    even, burst = np.arange(0, 100, 0.5), np.linspace(60, 62, 400, endpoint=False)
    ended = outcomes(np.sort(np.concatenate([even, burst])))
    ended = [missed(o) if 20 <= o.arrival_s < 24 else o for o in ended]
    zoom = burst_zoom(ended, 100.0)
    assert zoom["start_s"] <= 20
    assert zoom["start_s"] + zoom["length_s"] >= 24
    assert zoom["missed"] == 8
    assert sum(zoom["series"]["arrived"]) - sum(zoom["series"]["on_time"]) == 8


def test_what_is_missed_at_the_very_end_is_in_the_last_stretch():
    """A log of whole seconds ends with all of its last second at the run's very end."""
    ended = outcomes(np.arange(0, 100, 0.5)) + [missed(o) for o in outcomes(np.full(150, 100.0))]
    zoom = burst_zoom(ended, 100.0)
    assert zoom["start_s"] == 92.0
    assert zoom["missed"] == 150
    assert sum(zoom["series"]["arrived"]) - sum(zoom["series"]["on_time"]) == 150
    assert zoom["series"]["queue_max"][-1] >= 150
