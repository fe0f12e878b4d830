"""`paced_load`: an open loop over HTTP whose client costs as little as can be.

Beyond what a door carries a client that builds requests and reads answers takes more of two cores
than the door, and then it is the client that is measured. This one sends bytes that were made
beforehand over kept connections, and reads of an answer its status and its accuracy.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

CONNECTIONS = 512
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
    request: bytes,
    *,
    rate_qps: float,
    duration_s: float,
    slo_s: float,
    connections: int = CONNECTIONS,
    seed: int = 0,
) -> PacedScore:
    """Send a request at the times of a Poisson process, and judge answers from those times.

    Each connection has every n-th of the times. One that is still waiting sends when it is free,
    unless the time of that request is over by then, as a client with a deadline does.
    """
    where = urlsplit(url)
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(1 / rate_qps, round(rate_qps * duration_s)))
    opened = [await asyncio.open_connection(where.hostname, where.port) for _ in range(connections)]
    began_s = time.monotonic() + 0.05
    ends: Counter[str] = Counter()
    accuracies: list[float] = []
    lags_s: list[float] = []

    async def send(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due_s: np.ndarray
    ) -> None:
        for at_s in due_s:
            left_s = at_s - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                lags_s.append(time.monotonic() - at_s)
            if time.monotonic() >= at_s + slo_s:
                ends["unsent"] += 1
                continue
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length))
            status = head[9:12].decode()
            if status == "200" and time.monotonic() > at_s + slo_s:
                status = "late"
            ends[status] += 1
            told = _ACCURACY.search(body)
            if status == "200" and told is not None:
                accuracies.append(float(told.group(1)))

    due_s = began_s + times_s
    await asyncio.gather(
        *(send(*ways, due_s[first::connections]) for first, ways in enumerate(opened))
    )
    for _, writer in opened:
        writer.close()
    return PacedScore(
        ends["200"],
        len(times_s),
        float(np.mean(accuracies)) if accuracies else 0.0,
        float(np.quantile(lags_s, 0.99)) if lags_s else 0.0,
        dict(ends),
    )
