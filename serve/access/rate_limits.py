"""`RateLimits`: a token bucket for each principal, so that one client cannot take all of a server.

A bucket holds at most `burst` samples and fills with `rate_qps`. A request is admitted while
its bucket holds one sample or more, before its body is read; what it turns out to hold beyond that
is charged afterwards, and may take the bucket below zero: on average nobody gets more than
the rate. Buckets that are full again are forgotten, so that memory is bounded by who asks now.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

_MAX_PRINCIPALS = 10_000


class Rates(Protocol):
    """Buckets by principal, of this process or of several (`shared_rates.py`)."""

    def take(self, principal: str) -> float:
        """Charge one sample and return 0.0, or return the seconds until that is possible."""
        ...

    def charge(self, principal: str, count: int) -> None:
        """Take `count` more samples off a bucket, below zero if need be."""
        ...


class RateLimits:
    """Buckets by principal, on an injected clock; used by one thread."""

    def __init__(
        self,
        rate_qps: float,
        burst: float,
        clock: Callable[[], float],
        *,
        max_principals: int = _MAX_PRINCIPALS,
    ) -> None:
        self._rate_qps = rate_qps
        self._burst = burst
        self._clock = clock
        self._max_principals = max_principals
        self._full_at_s: OrderedDict[str, float] = OrderedDict()  # least recently used first

    def take(self, principal: str) -> float:
        """Charge one sample and return 0.0, or return the seconds until that is possible."""
        now_s = self._clock()
        level = (
            self._burst - max(0.0, self._full_at_s.get(principal, now_s) - now_s) * self._rate_qps
        )
        if level < 1.0 - 1e-9:
            return (1.0 - level) / self._rate_qps
        self.charge(principal, 1)
        return 0.0

    def charge(self, principal: str, count: int) -> None:
        """Take `count` more samples off a bucket, below zero if need be."""
        now_s = self._clock()
        full_at_s = max(now_s, self._full_at_s.get(principal, now_s))
        self._full_at_s[principal] = full_at_s + count / self._rate_qps
        self._full_at_s.move_to_end(principal)
        self._forget(now_s)

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._full_at_s)

    def _forget(self, now_s: float) -> None:
        """Drop full buckets from the front; when all are in use, the one used longest ago."""
        buckets = self._full_at_s
        while buckets:
            principal, full_at_s = next(iter(buckets.items()))
            if full_at_s > now_s and len(buckets) <= self._max_principals:
                return
            del buckets[principal]
