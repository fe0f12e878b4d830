"""What answers wait at the door is learned, and left of the deadline."""

from __future__ import annotations

import numpy as np
import pytest

from serve.models.reply_lag import ReplyLag


def test_it_settles_where_nineteen_of_twenty_are_below() -> None:
    lag = ReplyLag()
    waits_s = np.random.default_rng(0).exponential(0.002, 20_000)
    below = [(lag.observe(wait_s), wait_s <= lag.lag_s)[1] for wait_s in waits_s]
    assert np.mean(below[2000:]) == pytest.approx(0.95, abs=0.02)


def test_a_pile_is_noticed_within_a_few_batches_and_forgotten_after_it() -> None:
    lag = ReplyLag()
    for _ in range(32):
        lag.observe(0.02)
    assert lag.lag_s > 0.01
    for _ in range(2000):
        lag.observe(0.0)
    assert lag.lag_s == 0.0


def test_it_has_a_bound() -> None:
    lag = ReplyLag()
    for _ in range(1000):
        lag.observe(9.0)
    assert lag.lag_s == 0.1
