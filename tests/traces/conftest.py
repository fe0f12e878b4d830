"""A hand-written target for replays, and reports to draw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.query import Outcome
from traces.open_loop.replay import ReplayReply, ReplayRequest


class FakeTarget:
    """Answers after `service_s`, one at a time; stalls once when `stall` (start, length) says so.

    The answer's class is the payload's first value. `script` may replace the reply of a query.
    """

    def __init__(
        self,
        service_s: float = 0.001,
        stall: tuple[float, float] | None = None,
        script: Callable[[ReplayRequest], ReplayReply | Exception | None] | None = None,
    ) -> None:
        self.requests: list[ReplayRequest] = []
        self._service_s = service_s
        self._stall = stall
        self._script = script
        self._device = asyncio.Lock()
        self._start_s: float | None = None

    async def prepare(self, payloads: np.ndarray) -> None:
        self.prepared = len(payloads)

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        self.requests.append(request)
        now_s = asyncio.get_running_loop().time()
        self._start_s = now_s if self._start_s is None else self._start_s
        scripted = self._script(request) if self._script else None
        if isinstance(scripted, Exception):
            raise scripted
        if scripted is not None:
            return scripted
        async with self._device:
            await self._serve()
        output = np.zeros(10, dtype=np.float32)
        output[int(request.payload.flat[0])] = 1.0
        return ReplayReply(
            status="ok", output=output, subnet_id="small", accuracy=0.9, batch_size=1
        )

    async def _serve(self) -> None:
        assert self._start_s is not None, "set by the first query"
        elapsed_s = asyncio.get_running_loop().time() - self._start_s
        if self._stall and elapsed_s >= self._stall[0]:
            length_s, self._stall = self._stall[1], None
            await asyncio.sleep(length_s)
        await asyncio.sleep(self._service_s)

    async def close(self) -> None:
        pass


@pytest.fixture
def payloads() -> np.ndarray:
    """Ten samples (10, 1, 2, 2) uint8 whose values are their labels."""
    return np.arange(10, dtype=np.uint8).repeat(4).reshape(10, 1, 2, 2)


@pytest.fixture
def fake_target() -> type[FakeTarget]:
    return FakeTarget


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """Return a maker of reports: 200 queries over 4 s, a third of them not on time."""

    def make(policy: str = "slackfit", **extra: Any) -> dict[str, Any]:
        outcomes: list[Outcome] = []
        for i in range(200):
            arrival_s, deadline_s = i * 0.02, i * 0.02 + 0.05
            if i % 6 == 0:
                gone = (i, "dropped", "infeasible", arrival_s, deadline_s, None, deadline_s)
                outcomes.append(Outcome(*gone, subnet_id=None, accuracy=0.0, batch_size=0))
                continue
            took_s = 0.08 if i % 6 == 1 else 0.01 + 0.0001 * i
            status = "late" if took_s > 0.05 else "on_time"
            subnet_id, accuracy = ("d0-w1", 0.91) if 50 < i < 100 else ("d2-w3", 0.97)
            ran = (i, status, "", arrival_s, deadline_s, arrival_s, arrival_s + took_s)
            outcomes.append(Outcome(*ran, subnet_id, accuracy, 1, 0))
        return summarize(
            outcomes, policy=policy, slo_s=0.05, duration_s=4.0, seed=1, profile="test", **extra
        )

    return make


@pytest.fixture(scope="session")
def resnet_file() -> str:
    return str(Path(__file__).parents[2] / "profiles" / "superserve_resnet_2080ti.json")
