"""What doors in processes of their own cost and save: `doors: 1` and `2` at the same rate.

An open loop over HTTP at 2,000 requests/s on the real device, its smallest subnet, from a client
that costs as little as can be. Of each server: what the process of the device uses of a core, what
the doors use, how much slower than profiled a forward is, and what the client waits.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from serve.bench.journal import Journal
from serve.bench.process_tree import children
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.closed_loop import http_request, processor_s
from serve.bench.serving.server_process import server_process
from serve.bench.serving.setting import Setting

RATE_QPS = 2000.0
_CONNECTIONS = 64
_COUNTS = (1, 2)
_WARM_UP_S = 1.0
_TOLD = re.compile(
    rb'"batch_id": "(\d+)".*"batch_size": (\d+).*"execution_s": ([0-9.e+-]+)', re.DOTALL
)


class PacedAnswer(NamedTuple):
    """When a request was due and answered, and of which batch; times in seconds."""

    due_s: float
    ended_s: float
    batch_id: int
    batch_size: int
    execution_s: float


class DoorProcessesBench:
    """Servers with one door and with two, in turns; what is measured goes to the journal."""

    def __init__(
        self, setting: Setting, journal: Journal, *, rounds: int, duration_s: float, tell: Tell
    ) -> None:
        self._setting = setting
        self._journal = journal
        self._rounds = rounds
        self._duration_s = duration_s
        self._tell = tell

    def run(self) -> None:
        """Measure what the journal lacks."""
        cores = len(os.sched_getaffinity(0))
        for number, count in itertools.product(range(self._rounds), _COUNTS):
            if count > cores:
                self._tell(f"doors: {count} needs as many cores, here are {cores}: left out")
                continue
            cell = self._journal.once(
                f"cost/door_processes/{count}/{number}", lambda n=count: self._measure(n)
            )
            self._tell(f"doors: {count}: {cell}")

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        rows: list[Row] = []
        for count in _COUNTS:
            names = [f"cost/door_processes/{count}/{number}" for number in range(self._rounds)]
            cells = [self._journal.get(name) for name in names if name in self._journal]
            if not cells:
                continue
            found = {key: float(np.median([cell[key] for cell in cells])) for key in cells[0]}
            told = (
                f"HTTP at {RATE_QPS:.0f}/s, {found['answered_qps']:.0f}/s answered, "
                f"{self._duration_s:g} s, median of {len(cells)} in turns; smallest subnet"
            )
            figure = f"serving/doors/{count}_at_{RATE_QPS:.0f}"
            rows += [
                row(f"{figure}/device_process_cores", found["device_cores"], "cores", told),
                row(f"{figure}/door_processes_cores", found["door_cores"], "cores",
                    "0 where the door is in the device's process"),
                row(f"{figure}/forward_over_profiled", found["forward"], "ratio",
                    "median over batches; the profile is the idle device's"),
                row(f"{figure}/latency_p50", found["p50_s"], "s", "from the intended send"),
                row(f"{figure}/latency_p99", found["p99_s"], "s", "from the intended send"),
            ]  # fmt: skip
        return rows

    def _measure(self, doors: int) -> dict[str, float]:
        setting = self._setting
        subnet_id = setting.sized()["smallest"]
        config = setting.config(policy=f"fixed:{subnet_id}", doors=doors, slo_ms=10_000)
        with server_process(config) as server:
            sample = np.zeros((1, *setting.input_shape), np.uint8)
            request = http_request(server.url, setting.load.model, sample, subnet_id)
            asyncio.run(paced(server.url, request, RATE_QPS / 4, _WARM_UP_S))
            pids = children(server.pid)
            before_s = processor_s(server.pid), sum(map(processor_s, pids))
            began_s = time.monotonic()
            answers = asyncio.run(paced(server.url, request, RATE_QPS, self._duration_s))
            took_s = time.monotonic() - began_s
            device_s = processor_s(server.pid) - before_s[0]
            doors_s = sum(map(processor_s, pids)) - before_s[1]
        batches = {a.batch_id: a for a in answers}.values()
        profiled = setting.profile.table()[subnet_id]
        waited_s = [a.ended_s - a.due_s for a in answers]
        return {
            "answered_qps": len(answers) / took_s,
            "device_cores": device_s / took_s,
            "door_cores": doors_s / took_s,
            "forward": float(np.median([b.execution_s / profiled[b.batch_size] for b in batches])),
            "p50_s": float(np.quantile(waited_s, 0.5)),
            "p99_s": float(np.quantile(waited_s, 0.99)),
        }


async def paced(url: str, request: bytes, rate_qps: float, duration_s: float) -> list[PacedAnswer]:
    """Send a request at its times over kept connections, whether or not others are answered.

    Each connection has every n-th of the times; one that waits for an answer sends late, which
    counts as latency. Raises RuntimeError for a refusal.
    """
    where, began_s = urlsplit(url), time.monotonic() + 0.05
    due_s = began_s + np.arange(round(rate_qps * duration_s)) / rate_qps
    found = await asyncio.gather(
        *(
            _send(where.hostname, where.port, request, due_s[first::_CONNECTIONS])
            for first in range(_CONNECTIONS)
        )
    )
    return [answer for answers in found for answer in answers]


async def _send(host: Any, port: Any, request: bytes, times_s: np.ndarray) -> list[PacedAnswer]:
    reader, writer = await asyncio.open_connection(host, port)
    answers: list[PacedAnswer] = []
    for due_s in times_s:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        told = _TOLD.search(await reader.readexactly(int(length)))
        if told is None:
            raise RuntimeError(f"refused: {head!r}")
        batch_id, batch_size, execution_s = told.groups()
        about = (int(batch_id), int(batch_size), float(execution_s))
        answers.append(PacedAnswer(float(due_s), time.monotonic(), *about))
    writer.close()
    return answers
