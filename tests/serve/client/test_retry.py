"""Asking again within the slack: with how much time, and how often at most."""

from __future__ import annotations

import pytest

from serve.client.retry import Attempts, RetryBucket


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lose_all(attempts: Attempts, clock: Clock, latency_s: float = 0.0) -> list[float]:
    """Lose attempt after attempt, each after `latency_s`; return the waits between them."""
    waits: list[float] = []
    while True:
        clock.now_s += latency_s
        wait_s = attempts.next_wait_s()
        if wait_s is None:
            return waits
        waits.append(wait_s)
        clock.now_s += wait_s


def test_each_attempt_has_what_is_left_of_the_times():
    clock = Clock()
    attempts = Attempts(RetryBucket(), clock, 1.0)
    clock.now_s += 0.2
    assert attempts.next_wait_s() == pytest.approx(0.01)
    clock.now_s += 0.01
    assert attempts.left_s(1.0) == pytest.approx(0.79)
    assert attempts.left_s(2.0) == pytest.approx(1.79)
    assert attempts.left_s(0.1) == 1e-3, "never nothing: the server says that it is too late"


def test_waits_double_up_to_a_quarter_of_a_second():
    clock = Clock()
    waits = lose_all(Attempts(RetryBucket(), clock, 2.0), clock)
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16] + [0.25] * 6)


def test_retries_end_with_the_slack():
    clock, bucket = Clock(), RetryBucket()
    attempts = Attempts(bucket, clock, 1.0)
    assert len(lose_all(attempts, clock, latency_s=0.3)) == 3
    assert attempts.num_retries == bucket.num_retries == 3
    assert attempts.spent_s < 1.0 + 0.3, "the last one started within the slack"


def test_server_that_is_down_does_not_get_many_times_the_load():
    clock, bucket = Clock(), RetryBucket()
    for _ in range(1000):
        lose_all(Attempts(bucket, clock, 0.2), clock)
    assert bucket.num_retries == 100, "the bucket is empty and nothing refills it"


def test_answers_refill_the_bucket():
    clock, bucket = Clock(), RetryBucket()
    for _ in range(1000):
        lose_all(Attempts(bucket, clock, 0.2), clock)
    for _ in range(30):
        Attempts(bucket, clock, 0.2).answered()
    assert len(lose_all(Attempts(bucket, clock, 1.0), clock)) == 3
