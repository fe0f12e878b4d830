"""Retrying, within a query's slack, what a dying or draining server did not answer.

Inference has no side effects, so a query whose server died while it ran may be retried; each
attempt carries only the slack that is left, so that a second server refuses what it cannot make.
Not retried: what was refused for load (`queue_full`, `infeasible`), because retries would feed
the overload; `errors.UnavailableError` says what is. Retries draw on a bucket that
successes refill, as in gRPC's retry throttling: when a server is down for good, the load on it does
not multiply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 0.25
_FULL_BUCKET = 100.0
_REFILL = 0.1  # per answered query
_LEAST_LEFT_S = 1e-3


class RetryBucket:
    """The retries that a client may still make; `num_retries` counts those it has made.

    Threads may share one.
    """

    def __init__(self) -> None:
        self.num_retries = 0
        self._level = _FULL_BUCKET
        self._lock = threading.Lock()

    def refill(self) -> None:
        """Note a query that was answered."""
        with self._lock:
            self._level = min(_FULL_BUCKET, self._level + _REFILL)

    def take(self) -> bool:
        """Take one retry; return whether there was one left."""
        with self._lock:
            if self._level < 1:
                return False
            self._level -= 1
            self.num_retries += 1
            return True


class Attempts:
    """The attempts of one query, which began now and is of no use after `slack_s`."""

    def __init__(self, bucket: RetryBucket, clock: Callable[[], float], slack_s: float) -> None:
        self.num_retries = 0
        self._bucket = bucket
        self._clock = clock
        self._slack_s = slack_s
        self._start_s = clock()
        self._wait_s = _FIRST_WAIT_S

    @property
    def spent_s(self) -> float:
        """Seconds since the query began."""
        return self._clock() - self._start_s

    def left_s(self, given_s: float) -> float:
        """Return what is left of a time that counts from the query's beginning."""
        return max(given_s - self.spent_s, _LEAST_LEFT_S)

    def answered(self) -> None:
        """Note that the server has answered, with whatever."""
        self._bucket.refill()

    def next_wait_s(self, *, at_once: bool = False) -> float | None:
        """Return how long to wait before a retry; None when that is of no use any more.

        `at_once`: another server is there to be asked, so that there is nothing to wait for.
        """
        wait_s = 0.0 if at_once else self._wait_s
        if self.spent_s + wait_s >= self._slack_s or not self._bucket.take():
            return None
        self.num_retries += 1
        if not at_once:
            self._wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return wait_s
