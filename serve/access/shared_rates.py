"""`SharedRates`: token buckets that several processes of one server share, in memory of both.

What `RateLimits` keeps in a dictionary stands here in a table: principals by a hash of 64 bits,
and when each bucket is full again. The kernel's lock on the memory's file is held for each look,
and given back by itself when a process dies: what it left behind is at worst one sample off.
A bucket that is full again is a free place; where none is near, the fullest one is forgotten.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator

from serve.access.rate_limits import RateLimits, Rates

_PLACES = 2**14
_NEAR = 16  # places from its own in which a principal may stand
_ITEM_BYTES = 8
NUM_BYTES = 2 * _PLACES * _ITEM_BYTES


class SharedRates:
    """The table behind a descriptor of `NUM_BYTES` of shared memory, which is then this object's.

    Used by one thread of each process.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        memory = memoryview(mmap.mmap(file, NUM_BYTES))
        self._keys = memory[: _PLACES * _ITEM_BYTES].cast("Q")
        self._full_at_s = memory[_PLACES * _ITEM_BYTES :].cast("d")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the other processes out for the length of a `with` block."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def full_at_s(self, name: str, now_s: float) -> float:
        """Return when a bucket is full again: now, if it is not kept."""
        key = _key(name)
        place = self._find(key)
        return now_s if place is None else max(now_s, self._full_at_s[place])

    def keep(self, name: str, full_at_s: float, now_s: float) -> None:
        """Keep when a bucket is full again."""
        key = _key(name)
        place = self._find(key)
        if place is None:
            places = self._near(key)
            place = min(places, key=lambda at: max(now_s, self._full_at_s[at]))
            self._keys[place] = key
        self._full_at_s[place] = full_at_s

    def _find(self, key: int) -> int | None:
        return next((place for place in self._near(key) if self._keys[place] == key), None)

    def _near(self, key: int) -> list[int]:
        return [(key + step) % _PLACES for step in range(_NEAR)]


class SharedRateLimits:
    """`RateLimits` over a shared table; `kind` keeps names of different kinds apart."""

    def __init__(
        self,
        rate_qps: float,
        burst: float,
        clock: Callable[[], float],
        shared: SharedRates,
        kind: str,
    ) -> None:
        self._rate_qps = rate_qps
        self._burst = burst
        self._clock = clock
        self._shared = shared
        self._kind = kind

    def take(self, principal: str) -> float:
        """See `RateLimits`."""
        name, now_s = f"{self._kind} {principal}", self._clock()
        with self._shared.locked():
            full_at_s = self._shared.full_at_s(name, now_s)
            level = self._burst - (full_at_s - now_s) * self._rate_qps
            if level < 1.0 - 1e-9:
                return (1.0 - level) / self._rate_qps
            self._shared.keep(name, full_at_s + 1 / self._rate_qps, now_s)
        return 0.0

    def charge(self, principal: str, count: int) -> None:
        """See `RateLimits`."""
        name, now_s = f"{self._kind} {principal}", self._clock()
        with self._shared.locked():
            full_at_s = self._shared.full_at_s(name, now_s)
            self._shared.keep(name, full_at_s + count / self._rate_qps, now_s)


def limits(
    rate_qps: float,
    burst: float,
    clock: Callable[[], float],
    shared: SharedRates | None,
    kind: str,
) -> Rates:
    """Return the buckets of one kind of principal, shared where they are to be."""
    if shared is None:
        return RateLimits(rate_qps, burst, clock)
    return SharedRateLimits(rate_qps, burst, clock, shared, kind)


def make_rates_memory() -> int:
    """Return the descriptor of memory for one table; without a name, gone with who has it."""
    file = os.memfd_create("supernet-rates")
    os.ftruncate(file, NUM_BYTES)
    return file


def _key(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
