"""A worker killed under load: when its streams have ended, what others felt, when all is back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any, NamedTuple

from serve.bench.decoder.bench import random_checkpoint
from serve.bench.rows import Row, row
from serve.engine.streams.open_stream import OpenStream, StreamRequest
from serve.engine.streams.stream_device import StreamDevice
from serve.engine.streams.stream_engine import StreamEngine
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts
from slackfit.streams.parallel_cost import ParallelCost
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from supernet.definition import define_supernet

_LONG, _SHORT, _BREAK_EVEN = 320, 16, 128
_KEPT = 4096


class KillTimes(NamedTuple):
    """What was seen from the kill on, in seconds, and how streams ended.

    `failed_s` is when the last stream of the killed worker had ended, `others_gap_s` the longest
    wait of the others for an output, `back_s` when a new stream over all workers had its first.
    """

    failed_s: float
    others_gap_s: float
    back_s: float
    reasons: set[str]
    others: set[str]


def kill_under_load(*, num_long: int = 2, num_short: int = 4, device: str = "cpu") -> KillTimes:
    """Serve streams on two shards, kill the second's worker, and watch."""
    checkpoint = random_checkpoint(define_supernet("decoder_tiny", max_positions=4096))
    executor = ParallelExecutor(
        checkpoint,
        WorkerGrid(shards=2),
        capacity_tokens=_KEPT,
        spread_from=_BREAK_EVEN,
        device=device,
    )
    try:
        return asyncio.run(_watch(executor, num_long, num_short))
    finally:
        executor.close()


async def _watch(executor: ParallelExecutor, num_long: int, num_short: int) -> KillTimes:
    costs = _costs(executor.subnet_ids)
    policy = create_stream_policy("fcfs", costs)
    scheduler = StreamScheduler(costs, policy, kv_tokens=_KEPT, extent_tokens=64)
    engine = StreamEngine(scheduler, StreamDevice(executor))
    await engine.start()
    try:
        long = [StreamReader(engine, _LONG, 500) for _ in range(num_long)]
        short = [StreamReader(engine, _SHORT, 60) for _ in range(num_short)]
        while not all(reader.stamps_s for reader in (*long, *short)):
            await asyncio.sleep(0.005)
        killed_s = time.monotonic()
        os.kill(executor.process_ids[1], signal.SIGKILL)
        await asyncio.gather(*(reader.task for reader in long))
        failed_s = max(reader.ended_s for reader in long) - killed_s
        again = StreamReader(engine, _LONG, 2)
        await again.task
        while not executor.is_whole:  # an iteration each: that is when workers are looked after
            await StreamReader(engine, _SHORT, 1).task
        again = StreamReader(engine, _LONG, 2)
        await again.task
        back_s = again.stamps_s[0] - killed_s
        await asyncio.gather(*(reader.task for reader in short))
        gaps = [b - a for r in short for a, b in zip(r.stamps_s, r.stamps_s[1:], strict=False)]
        return KillTimes(
            failed_s,
            max(gaps),
            back_s,
            {reader.outcome.reason for reader in long},
            {reader.outcome.status for reader in short},
        )
    finally:
        await engine.stop()


class StreamReader:
    """A client of one stream: when its outputs came, and how it ended."""

    def __init__(self, engine: StreamEngine, prompt_tokens: int, outputs: int) -> None:
        now_s = engine.clock()
        self._stream: OpenStream = engine.open(
            StreamRequest(
                prompt=[i % 100 for i in range(prompt_tokens)],
                max_tokens=outputs,
                arrival_s=now_s,
                first_deadline_s=now_s + 60.0,
                period_s=1.0,
            )
        )
        self.stamps_s: list[float] = []
        self.ended_s = 0.0
        self.task = asyncio.ensure_future(self._read())

    @property
    def outcome(self) -> Any:
        """How it ended."""
        assert self._stream.outcome is not None, "its task has ended"
        return self._stream.outcome

    async def _read(self) -> None:
        async for _ in self._stream:
            self.stamps_s.append(time.monotonic())
        self.ended_s = time.monotonic()


def _costs(subnet_ids: tuple[str, ...]) -> IterationCosts:
    """Costs of a decoder that takes a millisecond or two, and its break-even."""
    rungs = tuple(
        IterationCost(
            subnet_id=subnet_id,
            quality=0.5 + i / 10,
            linear=CostCurve((1, 64), (0.002, 0.004)),
            head=CostCurve((1,), (0.0005,)),
        )
        for i, subnet_id in enumerate(subnet_ids)
    )
    grid = ParallelCost(shards=2, break_even_tokens=_BREAK_EVEN, gather_s=0.001)
    return IterationCosts(quality_kind="made up", rungs=rungs).on_workers(grid)


def failure_rows(device: str = "cpu") -> list[Row]:
    """Kill a worker of two, and report times."""
    seen = kill_under_load(device=device)
    detail = (
        f"kill -9 of one of two workers while streams ran on both; its streams ended as "
        f"{', '.join(sorted(seen.reasons))}, the others as {', '.join(sorted(seen.others))}"
    )
    return [
        row("long-context/failure/its_streams_ended", seen.failed_s, "s", f"{detail}; bar 2"),
        row("long-context/failure/longest_gap_of_others", seen.others_gap_s, "s", detail),
        row("long-context/failure/service_back", seen.back_s, "s", f"{detail}; bar 15"),
    ]
