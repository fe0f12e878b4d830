"""The fluidity index: the golden vectors, its properties, the token rate, video."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slackfit.streams.fluidity import (
    FluidityCount,
    StreamTimeline,
    fluid_token_rate,
    fluidity,
    video_fluidity,
)

GAPS_MS = st.lists(st.integers(0, 1000), min_size=1, max_size=30)


def of_gaps(gaps_ms: list[int], first_ms: int = 500, period_ms: int = 100):
    """The index of outputs after so many milliseconds each, the query at 3,600 s."""
    at_ms, times_s = 3_600_000, list[float]()
    for gap_ms in gaps_ms:
        at_ms += gap_ms
        times_s.append(at_ms / 1e3)
    return fluidity(times_s, 3600.0 + first_ms / 1e3, period_ms / 1e3)


@pytest.mark.parametrize(
    ("gaps_ms", "missed", "due"),
    [
        ([500] + [100] * 9, 0, 10),
        ([500] + [10] * 10 + [150], 0, 12),
        ([500] + [100] * 10 + [150], 1, 12),
        ([850] + [50] * 9, 4, 13),
        ([500] + [100] * 4 + [450] + [100] * 4, 4, 13),
        ([200] + [100] * 3 + [400] + [100] * 3, 0, 8),
        ([500] + [300, 0, 0, 0] * 3, 3, 15),
    ],
)
def test_golden_vectors(gaps_ms: list[int], missed: int, due: int):
    found = of_gaps(gaps_ms)
    assert (found.missed, found.due) == (missed, due)
    assert found.index == pytest.approx(1 - missed / due)


def in_integers(gaps_ms: list[int], first_ms: int, period_ms: int) -> tuple[int, int]:
    """The published pseudo-code, by slack, in whole milliseconds."""
    slack = missed = total = 0
    for i, gap in enumerate(gaps_ms):
        allowed = first_ms if i == 0 else period_ms
        if gap <= allowed + slack:
            slack += allowed - gap
            total += 1
        else:
            late = (gap - slack - allowed) // period_ms + 1
            missed, total, slack = missed + late, total + late, 0
    return missed, total


@given(GAPS_MS, st.integers(0, 900), st.integers(1, 300))
def test_due_times_count_as_the_published_slack_does(
    gaps_ms: list[int], first_ms: int, period_ms: int
):
    found = of_gaps(gaps_ms, first_ms, period_ms)
    assert (found.missed, found.due) == in_integers(gaps_ms, first_ms, period_ms)


@given(GAPS_MS, st.data())
def test_the_index_never_rises_when_a_gap_grows(gaps_ms: list[int], data: st.DataObject):
    at = data.draw(st.integers(0, len(gaps_ms) - 1))
    longer = list(gaps_ms)
    longer[at] += data.draw(st.integers(1, 500))
    assert of_gaps(longer).index <= of_gaps(gaps_ms).index + 1e-12
    assert 0.0 <= of_gaps(gaps_ms).index <= 1.0


@given(GAPS_MS)
def test_a_stream_of_one_output_is_attained_or_not(gaps_ms: list[int]):
    gap_ms = gaps_ms[0]
    assert of_gaps([gap_ms]).index == (gap_ms <= 500)


def test_quality_counts_where_the_output_came_in_time():
    found = fluidity([0.5, 0.6, 0.9, 1.0], 0.5, 0.1, qualities=[1.0, 0.5, 1.0, 0.8])
    assert (found.missed, found.due) == (3, 6)
    assert found.weighted_index == pytest.approx((1.0 + 0.5 + 0.8) / 6)
    with pytest.raises(ValueError, match="1 qualities for 2 outputs"):
        fluidity([0.1, 0.2], 0.5, 0.1, qualities=[1.0])


def test_video_frames_are_due_at_their_own_times():
    # The second is late; the third is not due from there but at its own time, as the fourth is.
    times_s = [0.0, 0.15, 0.2, 0.31]
    assert video_fluidity(times_s, 0.0, 0.1).missed == 2
    assert fluidity(times_s, 0.0, 0.1).missed == 1
    dropped = video_fluidity([0.0, None, None, 0.3], 0.0, 0.1, qualities=[1.0, 1.0, 1.0, 0.5])
    assert (dropped.missed, dropped.due) == (2, 4)
    assert dropped.weighted_index == pytest.approx(1.5 / 4)


def test_a_period_of_nothing_is_refused():
    with pytest.raises(ValueError, match="period_s is 0.0, allowed more than 0"):
        FluidityCount(1.0, 0.0)


def test_the_fluid_rate_of_even_streams_is_their_pace():
    even = [StreamTimeline(0.5, [0.5 + 0.05 * i for i in range(40)]) for _ in range(100)]
    assert fluid_token_rate(even) == pytest.approx(20.0, rel=2e-3)
    assert fluid_token_rate([]) == 0.0


def test_the_fluid_rate_is_that_of_a_grid():
    rng = random.Random(3)
    streams: list[StreamTimeline] = []
    for _ in range(60):
        at_s = rng.random()
        times_s = [at_s := at_s + rng.expovariate(20.0) for _ in range(30)]
        streams.append(StreamTimeline(0.6, times_s))

    def will_do(period_s: float) -> bool:
        good = sum(fluidity(t.output_s, t.first_due_s, period_s).index >= 0.9 for t in streams)
        return good >= 0.9 * len(streams)

    grid = next(k * 1e-3 for k in range(1, 2000) if will_do(k * 1e-3))
    rate = fluid_token_rate(streams, share=0.9)
    assert grid - 1e-3 <= 1.0 / rate <= grid * (1 + 2e-3)


def test_no_rate_where_no_period_mends_it():
    # One output, late: no period makes it come in time.
    assert fluid_token_rate([StreamTimeline(0.5, [0.6])]) == 0.0
