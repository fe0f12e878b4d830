"""Streams on two workers of which one dies: who ends, who goes on, and what is kept of prompts."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from serve.bench.decoder.bench import random_checkpoint
from serve.engine.streams.open_stream import OpenStream, StreamRequest
from serve.engine.streams.prefix_cache import PrefixCache
from serve.engine.streams.stream_device import StreamDevice
from serve.engine.streams.stream_engine import StreamEngine
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts
from slackfit.streams.parallel_cost import ParallelCost
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_failure import WorkersLostError
from supernet.definition import define_supernet

BREAK_EVEN, KEPT, BLOCK = 128, 4096, 64
LONG = [i % 100 for i in range(700)]


class OnWorkers:
    """An engine over two shards, with kept prompts."""

    def __init__(self) -> None:
        checkpoint = random_checkpoint(define_supernet("decoder_tiny", max_positions=4096))
        curve = CostCurve((1, 64), (0.002, 0.004))
        costs = IterationCosts(
            quality_kind="made up",
            rungs=tuple(
                IterationCost(subnet_id=name, quality=0.5 + i / 10, linear=curve, head=curve)
                for i, name in enumerate(checkpoint.subnet_ids)
            ),
        ).on_workers(ParallelCost(shards=2, break_even_tokens=BREAK_EVEN))
        self.executor = ParallelExecutor.for_costs(checkpoint, costs, capacity_tokens=KEPT)
        qualities = {rung.subnet_id: rung.quality for rung in costs.rungs}
        device = StreamDevice(self.executor, PrefixCache(BLOCK, qualities))
        policy = create_stream_policy("fixed:largest", costs)
        scheduler = StreamScheduler(costs, policy, kv_tokens=KEPT, extent_tokens=BLOCK)
        self.engine = StreamEngine(scheduler, device)

    def open(self, prompt: list[int], outputs: int) -> OpenStream:
        now_s = self.engine.clock()
        return self.engine.open(
            StreamRequest(
                prompt=prompt,
                max_tokens=outputs,
                arrival_s=now_s,
                first_deadline_s=now_s + 60.0,
                period_s=2.0,
            )
        )

    async def tokens(self, prompt: list[int], outputs: int = 8) -> list[int]:
        stream = self.open(prompt, outputs)
        tokens = [output.token async for output in stream]
        assert stream.outcome is not None
        assert stream.outcome.status == "on_time", stream.outcome.reason
        return tokens

    def kill(self, rank: int) -> None:
        os.kill(self.executor.process_ids[rank], signal.SIGKILL)

    async def whole_again(self, killed: int, rank: int) -> None:
        async with asyncio.timeout(15.0):
            while self.executor.process_ids[rank] == killed or not self.executor.is_whole:
                await asyncio.sleep(0.02)


def test_what_was_kept_on_a_worker_that_is_gone_is_computed_again() -> None:
    """Also when nothing runs as it dies: it is replaced, and nobody is given what it held."""

    async def main() -> None:
        on = OnWorkers()
        await on.engine.start()
        try:
            cold = await on.tokens(LONG)
            assert await on.tokens(LONG) == cold
            assert on.engine.prefix_counts().hit_tokens == 640
            killed = on.executor.process_ids[1]
            on.kill(1)
            await on.whole_again(killed, 1)  # though nobody asks
            assert await on.tokens(LONG) == cold
            assert on.engine.prefix_counts().hit_tokens == 640  # no more than before
            assert await on.tokens(LONG) == cold
            assert on.engine.prefix_counts().hit_tokens == 1280
            on.executor.table.check_integrity()
        finally:
            await on.engine.stop()
            on.executor.close()

    asyncio.run(main())


def test_a_stream_that_was_promised_a_lost_prompt_computes_it_or_ends_with_its_worker() -> None:
    """Whichever is noticed first; one that ran has ended, a short one beside it goes on."""

    async def main() -> None:
        on = OnWorkers()
        await on.engine.start()
        try:
            cold = await on.tokens(LONG)
            running, short = on.open(LONG[:600], 2000), on.open([5, 6, 7], 60)
            await anext(aiter(running))
            await anext(aiter(short))
            on.kill(1)
            promised = on.open(LONG, 4)
            tokens: dict[object, list[int]] = {running: [], promised: []}
            ends: dict[object, tuple[str, str]] = {}
            for stream in (running, promised):
                async with asyncio.timeout(5.0):
                    tokens[stream] += [output.token async for output in stream]
                assert stream.outcome is not None
                ends[stream] = (stream.outcome.status, stream.outcome.reason)
            assert ends[running] == ("failed", "device_failed")
            if ends[promised] != ("failed", "device_failed"):
                assert ends[promised] == ("on_time", "")
                assert tokens[promised] == cold[:4]
            async for _ in short:
                pass
            assert short.outcome is not None
            assert short.outcome.status == "on_time"
            assert await on.tokens(LONG) == cold
        finally:
            await on.engine.stop()
            on.executor.close()

    asyncio.run(main())


def test_workers_that_cannot_be_had_any_more_end_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a health check fails, and whoever runs the replica replaces it."""

    async def main() -> None:
        on = OnWorkers()
        await on.engine.start()
        try:

            def look_after() -> Any:
                raise WorkersLostError("worker 1 ended 3 times")

            monkeypatch.setattr(on.executor, "look_after", look_after)
            async with asyncio.timeout(5.0):
                while not on.engine.status().fault:
                    await asyncio.sleep(0.02)
            refused = on.open([1], 1)
            assert refused.outcome is not None
            assert refused.outcome.reason == "device_failed"
        finally:
            await on.engine.stop()
            on.executor.close()

    asyncio.run(main())
