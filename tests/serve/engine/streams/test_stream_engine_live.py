"""The stream engine live: with its thread, on the timed decoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from serve.engine.streams.open_stream import OpenStream, StreamOutput, StreamRequest
from serve.engine.streams.stream_device import StreamDevice
from serve.engine.streams.stream_engine import StreamEngine
from serve.engine.streams.stream_group import StreamGroup
from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from subnetact.timed_decoder import TimedDecoder

COSTS = IterationCosts.of(LatencyProfile.load("profiles/smollm2_135m_example.json"))
FAST = COSTS.scaled(0.02)


def continued(prompt: Sequence[int], outputs: int) -> list[int]:
    """What the decoder says alone, token by token."""
    ids = list(prompt)
    for _ in range(outputs):
        ids.append(TimedDecoder(COSTS).next_token(ids))
    return ids[len(prompt) :]


async def collected(stream: OpenStream) -> list[StreamOutput]:
    return [output async for output in stream]


def live(decoder: TimedDecoder | None = None, **settings: Any) -> StreamEngine:
    scheduler = StreamScheduler(FAST, create_stream_policy("slackwidth", FAST))
    return StreamEngine(scheduler, StreamDevice(decoder or TimedDecoder(FAST)), **settings)


def request(engine: StreamEngine, prompt: Sequence[int], outputs: int) -> StreamRequest:
    now_s = engine.clock()
    return StreamRequest(
        prompt=prompt,
        max_tokens=outputs,
        arrival_s=now_s,
        first_deadline_s=now_s + 2.0,
        period_s=0.5,
    )


def test_outputs_reach_their_readers_as_they_come():
    async def main() -> None:
        engine = live()
        await engine.start()
        prompts = [[i + 1] * 40 for i in range(5)]
        streams = [engine.open(request(engine, prompt, 10)) for prompt in prompts]
        found = await asyncio.wait_for(asyncio.gather(*map(collected, streams)), 20)
        for prompt, outputs, stream in zip(prompts, found, streams, strict=True):
            assert [output.token for output in outputs] == continued(prompt, 10)
            assert stream.outcome is not None
            assert stream.outcome.is_complete
        assert await engine.drain(1.0)
        refused = engine.open(request(engine, [1], 1))
        assert refused.outcome is not None
        assert refused.outcome.reason == "draining"
        await engine.stop()

    asyncio.run(main())


def test_a_reader_that_is_cancelled_withdraws_its_stream():
    async def main() -> None:
        engine = live()
        await engine.start()
        stream = engine.open(request(engine, [1] * 40, 100_00))
        reader = asyncio.ensure_future(collected(stream))
        await asyncio.sleep(0.05)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert stream.outcome is not None
        assert stream.outcome.reason == "cancelled"
        await engine.stop()
        assert engine.status().num_running == 0

    asyncio.run(main())


def test_a_device_that_hangs_fails_every_stream_and_takes_no_more():
    release = threading.Event()

    hangs = threading.Event()

    class Hangs(TimedDecoder):
        def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
            if hangs.is_set():
                release.wait(20)
            return super().run(subnet_id, chunks)

    async def main() -> None:
        engine = live(Hangs(FAST), hung_after_s=0.05)
        engine._watchdog.launched = lambda now_s, expected_s: setattr(  # type: ignore[method-assign]
            engine._watchdog, "_hung_at_s", now_s + 0.05
        )
        await engine.start()
        hangs.set()
        stream = engine.open(request(engine, [1], 5))
        assert await asyncio.wait_for(collected(stream), 10) == []
        assert stream.outcome is not None
        assert (stream.outcome.status, stream.outcome.reason) == ("failed", "device_failed")
        late = engine.open(request(engine, [1], 5))
        assert late.outcome is not None
        assert late.outcome.reason == "device_failed"
        release.set()
        await engine.stop()

    asyncio.run(main())


def test_the_idle_device_is_looked_after():
    """One that fails while nobody asks is known before the next stream comes."""

    class Dies(TimedDecoder):
        def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
            if self.num_iterations >= len(FAST.subnet_ids):  # they were warmed up
                raise RuntimeError("gone")
            return super().run(subnet_id, chunks)

    async def main() -> None:
        engine = live(Dies(FAST), probe_after_s=0.02)
        await engine.start()
        async with asyncio.timeout(5.0):
            while not engine.status().fault:
                await asyncio.sleep(0.005)
        assert engine.status().fault == "the device thread ended: RuntimeError"
        late = engine.open(request(engine, [1], 5))
        assert late.outcome is not None
        assert late.outcome.reason == "device_failed"
        await engine.stop()

    asyncio.run(main())


def test_an_idle_device_without_memory_is_not_given_up():
    """A neighbour on it may have all there is, for a while; streams are served when it is back."""

    class Full(TimedDecoder):
        probes = 0

        def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
            if self.num_iterations >= len(FAST.subnet_ids) and self.probes < 2:
                self.probes += 1
                raise RuntimeError("CUDA error: out of memory")
            return super().run(subnet_id, chunks)

    async def main() -> None:
        decoder = Full(FAST)
        engine = live(decoder, probe_after_s=0.02)
        await engine.start()
        async with asyncio.timeout(5.0):
            while decoder.probes < 2 and not engine.status().fault:
                await asyncio.sleep(0.005)
        assert not engine.status().fault
        assert len(await asyncio.wait_for(collected(engine.open(request(engine, [1], 5))), 10)) == 5
        await engine.stop()

    asyncio.run(main())


def test_every_width_is_warm_before_the_first_stream():
    seen: list[str] = []

    class Notes(TimedDecoder):
        def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
            seen.append(subnet_id)
            return super().run(subnet_id, chunks)

    async def main() -> None:
        decoder = Notes(FAST)
        engine = live(decoder)
        await engine.start()
        assert seen == list(FAST.subnet_ids)
        assert decoder.held_tokens == 0
        await engine.stop()

        class Fails(TimedDecoder):
            def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
                raise RuntimeError("cold")

        with pytest.raises(RuntimeError, match="cold"):
            await live(Fails(FAST)).start()

    asyncio.run(main())


def test_a_device_that_does_not_come_back_at_the_end_has_failed():
    release, hangs = threading.Event(), threading.Event()

    class Stuck(TimedDecoder):
        def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
            if hangs.is_set():
                release.wait(20)
            return super().run(subnet_id, chunks)

    async def main() -> None:
        engine = live(Stuck(FAST))
        await engine.start()
        hangs.set()
        stream = engine.open(request(engine, [1], 5))
        await asyncio.sleep(0.05)
        await engine.stop(timeout_s=0.1)
        assert stream.outcome is not None
        assert (stream.outcome.status, stream.outcome.reason) == ("failed", "device_failed")
        assert engine.status().fault == "the device did not end its iteration in time"
        release.set()

    asyncio.run(main())


def test_a_group_is_read_as_any_of_its_streams_gets_on():
    async def main() -> None:
        engine = live()
        await engine.start()
        lengths = (3, 9, 1)
        group = StreamGroup(
            [engine.open(request(engine, [i + 1] * 5, n)) for i, n in enumerate(lengths)]
        )
        found: list[list[int]] = [[] for _ in lengths]
        while any(stream.outcome is None or stream.has_waiting for stream in group.streams):
            for index in await asyncio.wait_for(group.changed(), 10.0):
                found[index] += [o.token for o in group.streams[index].waiting()]
        for i, (tokens, count) in enumerate(zip(found, lengths, strict=True)):
            assert tokens == continued([i + 1] * 5, count)
        await engine.stop()

    asyncio.run(main())
