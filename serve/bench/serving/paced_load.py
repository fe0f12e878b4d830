"""`paced_load`: an open loop over HTTP whose client costs as little as can be.

Beyond what a door carries a client that builds requests and reads answers takes more of two cores
than the door, and then it is the client that is measured. This one sends bytes that were made
beforehand, but for the time left, over kept connections, and reads of an answer its status and its
accuracy.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np

CONNECTIONS = 512
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_ACCURACY = re.compile(rb'"accuracy": ([0-9.e+-]+)')


class PacedScore(NamedTuple):
    """What came of a paced load: answers in time, of how many, their mean accuracy, all ends.

    `ends` are statuses of HTTP, `late` (200, but after its time) and `unsent`. `lag_p99_s` is how
    late the client woke up for what it sent.
    """

    on_time: int
    due: int
    accuracy: float
    lag_p99_s: float
    ends: dict[str, int]

    @property
    def attainment(self) -> float:
        """On-time over all that was due."""
        return self.on_time / self.due if self.due else 0.0


async def paced_load(
    url: str,
    request: Callable[[float], bytes],
    *,
    rate_qps: float,
    duration_s: float,
    slo_s: float,
    connections: int = CONNECTIONS,
    seed: int = 0,
) -> PacedScore:
    """Send a request at the times of a Poisson process, and judge answers from those times.

    `request` makes one of the seconds that are left to it. Each connection has every n-th of the
    times. One that is still waiting sends when it is free, with the time that is left by then, and
    nothing when none is, as a client with a deadline does.
    """
    where = urlsplit(url)
    assert where.hostname is not None, "an address over TCP"
    assert where.port is not None, "with its port"
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(1 / rate_qps, round(rate_qps * duration_s)))
    loop, tally = asyncio.get_running_loop(), _PacedEnds()
    pacers: list[_Pacer] = []
    for _ in range(connections):
        _, pacer = await loop.create_connection(
            lambda: _Pacer(request, slo_s, tally), where.hostname, where.port
        )
        pacers.append(pacer)
    due_s = time.monotonic() + 0.05 + times_s
    await asyncio.gather(
        *(pacer.send(due_s[first::connections].tolist()) for first, pacer in enumerate(pacers))
    )
    for pacer in pacers:
        pacer.close()
    return PacedScore(
        tally.ends["200"],
        len(times_s),
        float(np.mean(tally.accuracies)) if tally.accuracies else 0.0,
        float(np.quantile(tally.lags_s, 0.99)) if tally.lags_s else 0.0,
        dict(tally.ends),
    )


class _PacedEnds:
    """What all connections have seen."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.accuracies: list[float] = []
        self.lags_s: list[float] = []


class _Pacer(asyncio.Protocol):
    """A connection with its times; a protocol, since streams cost three times as much."""

    def __init__(self, request: Callable[[float], bytes], slo_s: float, tally: _PacedEnds) -> None:
        self._request, self._slo_s, self._tally = request, slo_s, tally
        self._loop = asyncio.get_running_loop()
        self._is_done: asyncio.Future[None] = self._loop.create_future()
        self._due_s: list[float] = []  # the next one last
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, due_s: list[float]) -> asyncio.Future[None]:
        """Send at these times; done when all are answered."""
        self._due_s = due_s[::-1]
        self._go_on()
        return self._is_done

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        answer = self._answer + data
        head, _, body = answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None or len(body) < int(length.group(1)):
            self._answer = answer
            return
        self._answer = b""
        self._count(head[9:12].decode(), body)
        self._due_s.pop()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_done.done():
            self._is_done.set_exception(exc or ConnectionError("the server closed a connection"))

    def _count(self, status: str, body: bytes) -> None:
        if status == "200" and time.monotonic() > self._due_s[-1] + self._slo_s:
            status = "late"
        self._tally.ends[status] += 1
        told = _ACCURACY.search(body)
        if status == "200" and told is not None:
            self._tally.accuracies.append(float(told.group(1)))

    def _go_on(self) -> None:
        """Send what is due, or wait until something is."""
        while self._due_s:
            at_s, now_s = self._due_s[-1], time.monotonic()
            if now_s < at_s:
                self._loop.call_later(at_s - now_s, self._wake)
                return
            left_s = at_s + self._slo_s - now_s
            if left_s > 0:
                self._transport.write(self._request(left_s))
                return
            self._tally.ends["unsent"] += 1
            self._due_s.pop()
        self._is_done.set_result(None)

    def _wake(self) -> None:
        self._tally.lags_s.append(time.monotonic() - self._due_s[-1])
        self._go_on()
