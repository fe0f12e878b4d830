from __future__ import annotations

import numpy as np
import pytest

from traces.spec.spec import parse_spec
from traces.spec.streamed import piece_source, stream_spec
from traces.trace import TraceError

SUM = "poisson:rate=20,duration=10 + gamma:rate=50,cv2=4,duration=10"


@pytest.mark.parametrize(
    ("spec", "rate_qps"),
    [
        ("poisson:rate=200,duration=35", 200),
        ("gamma:rate=200,cv2=4,duration=35", 200),
        ("bursty:base=50,variant=150,cv2=8,duration=35", 200),
        ("azure2019-shape:qps=200,duration=35", 200),
        ("diurnal:rate=200,peak=1.5,duration=35", 200),
    ],
)
def test_pieces_are_in_order_repeat_with_the_seed_and_have_the_rate(spec, rate_qps):
    stream = stream_spec(spec, seed=3)
    arrival_s = np.concatenate(list(stream.pieces))
    assert stream.duration_s == 35.0
    assert np.all(np.diff(arrival_s) >= 0)
    assert 0 <= arrival_s[0] <= arrival_s[-1] <= 35.0
    assert len(arrival_s) == pytest.approx(rate_qps * 35, rel=0.15)
    again, other = (np.concatenate(list(stream_spec(spec, seed=s).pieces)) for s in (3, 4))
    assert np.array_equal(again, arrival_s)
    assert not np.array_equal(other, arrival_s)


def test_successive_pieces_differ():
    first, second = (p - p[0] for p in stream_spec("gamma:rate=50,cv2=4,duration=20").pieces)
    assert not np.array_equal(first[:10], second[:10])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("t.csv", "cannot be streamed, allowed are the generators poisson, gamma, bursty"),
        ("poisson:rate=1", "still needs duration"),
        ("poisson:rate=x,duration=5", "rate must be"),
        ("poisson:rate=1,duration=inf", "duration must be a finite number of at least 0"),
        ("poisson:rate=1,duration=0", "duration must be a finite time above 0"),
        ("diurnal:rate=9,peak=1.5,duration=9 + poisson:rate=9,duration=9", "of a sum only poisson"),
        ("poisson:rate=9,duration=9 + poisson:rate=9,duration=8", "must have one duration"),
        ("azure2019-shape:qps=9,duration=9,placement=uniform", "streamed with placement=poisson"),
        ("diurnal:rate=9,peak=3,duration=9", "peak"),
    ],
)
def test_what_cannot_be_streamed_is_refused(spec, message):
    with pytest.raises(TraceError, match=message):
        stream_spec(spec)


def test_pieces_are_found_by_time_and_follow_the_day():
    source = piece_source("diurnal:rate=20,peak=1.5,duration=125,cv2=2", seed=2)
    assert [list(source.between(k * 50.0, (k + 1) * 50.0)) for k in range(3)] == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12],
    ]  # fmt: skip
    begins_s = [source.begin_s(k) for k in range(len(source))]
    for k, begin_s in enumerate(begins_s):
        piece = source.piece(k)
        assert np.array_equal(piece, source.piece(k))
        assert begin_s <= piece[0] <= piece[-1] <= min(begin_s + 10.0, 125.0)
    assert source.rates_qps is not None
    assert source.rates_qps[6] == pytest.approx(30.0, rel=0.01)  # noon
    assert source.rates_qps[0] == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize(
    ("plain", "written"),
    [
        (
            "diurnal:rate=100,duration=60,peak=1.5,period=50,cv2=4",
            'diurnal:rate= 100, duration="60", peak=1.5 ,period =50, cv2="4"',
        ),
        ("azure2019-shape:qps=50,duration=30", 'azure2019-shape: qps="50", duration= 30'),
        ("gamma:rate=50,cv2=4,duration=25", ' gamma: rate=50, cv2=4, duration="25"'),
    ],
)
def test_spaces_and_quotes_change_no_traffic(plain: str, written: str):
    """A value after a space had been read as 0."""
    want, got = (piece_source(spec, seed=2) for spec in (plain, written))
    assert (len(got), got.duration_s) == (len(want), want.duration_s)
    for number in range(len(want)):
        assert np.array_equal(got.piece(number), want.piece(number))
    assert got.expected_qps == want.expected_qps
    parse_spec(written)  # which is what in memory is allowed


def test_a_piece_is_what_the_spec_draws_in_memory():
    for spec in ("bursty:base=20,variant=50,cv2=4,duration=10", SUM):
        source = piece_source(spec, seed=5)
        assert source.expected_qps == 70
        (only,) = range(len(source))
        drawn = int(np.random.SeedSequence([5, 0]).generate_state(1)[0])
        assert np.array_equal(source.piece(only), parse_spec(spec, seed=drawn).arrival_s)
