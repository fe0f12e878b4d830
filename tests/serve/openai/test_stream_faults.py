"""Faults with streams running: each ends once, truthfully; memory is whole; others notice nothing.

The device sleeps; a bystander reads a stream all the while, and is to be as fluent as alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from serve.engine.streams.stream_device import IterationResult, StreamDevice


async def bystander(streams: Any, outputs: int = 80) -> float:
    """Read a stream to its end; return how fluent the engine found it."""
    events = await streams.events(
        "/v1/completions",
        prompt="bystander",
        max_tokens=outputs,
        stream_options={"include_usage": True},
    )
    return events[-2]["usage"]["supernet"]["fluidity"]


async def nothing_is_held(streams: Any) -> None:
    async with asyncio.timeout(3.0):
        while streams.decoder.engine.status().num_running or streams.device.held_tokens:
            await asyncio.sleep(0.005)
    streams.decoder.engine._scheduler.kv.check_integrity()


def test_readers_that_go_or_do_not_read_hold_nobody_up(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams(prefix_cache=False) as streams:
            body = json.dumps(
                {
                    "model": "lm",
                    "prompt": "x",
                    "max_tokens": 500,
                    "stream": True,
                    "temperature": 0,
                }
            ).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
            asleep, loop = [], asyncio.get_running_loop()
            for _ in range(8):  # they ask, and never read
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                address = streams.url.removeprefix("http://").split(":")
                await loop.sock_connect(sock, (address[0], int(address[1])))
                await loop.sock_sendall(sock, head % len(body) + body)
                asleep.append(sock)

            async def goes() -> None:
                async with streams.client.stream(
                    "POST", "/v1/completions", content=body
                ) as response:
                    await anext(response.aiter_lines())

            fluent, *_ = await asyncio.gather(bystander(streams), *(goes() for _ in range(8)))
            assert fluent == 1.0
            async with asyncio.timeout(20.0):  # whoever sleeps has had a whole stream
                while streams.decoder.engine.status().ended.get("on_time", 0) < 9:
                    await asyncio.sleep(0.02)
            for sock in asleep:  # once they wake, all of it is there
                read = bytearray()
                while not read.endswith(b"0\r\n\r\n"):
                    read += await asyncio.wait_for(loop.sock_recv(sock, 65536), 5.0)
                assert b"data: [DONE]" in read
                events = re.findall(rb"data: (\{.*\})\n", bytes(read))
                texts = [json.loads(event)["choices"][0]["text"] for event in events]
                assert sum(map(len, texts)) == 500
                sock.close()
            await nothing_is_held(streams)
            ended = streams.decoder.engine.status().ended
            assert sum(ended.values()) == 17
            assert ended["dropped"] == 8

    asyncio.run(main())


def test_memory_that_runs_out_is_shared_in_turns(serve_streams: Callable[..., Any]) -> None:
    """More streams than there is memory for: some wait, some are computed again, all are whole."""

    async def main() -> None:
        settings = {"kv_tokens": 640, "ttft_ms": 60_000, "tpot_ms": 10_000}
        async with serve_streams(factor=0.005, **settings) as streams:
            answers = await asyncio.gather(
                *(streams.complete([i + 1] * 60, max_tokens=150) for i in range(12))
            )
            assert {a.status_code for a in answers} == {200}
            usages = [answer.json()["usage"] for answer in answers]
            assert {usage["completion_tokens"] for usage in usages} == {150}
            assert sum(usage["supernet"]["preemptions"] for usage in usages) > 0
            alone = await streams.complete([1] * 60, max_tokens=150)
            text = alone.json()["choices"][0]["text"]
            assert answers[0].json()["choices"][0]["text"] == text

    asyncio.run(main())


def test_a_device_that_hangs_is_told_to_every_stream(
    serve_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serve_streams(hung_after_s=0.3) as streams:
            hung = asyncio.ensure_future(
                streams.events("/v1/completions", prompt="x", max_tokens=100_00)
            )
            await asyncio.sleep(0.3)
            import threading

            stuck = threading.Event()
            monkeypatch.setattr(
                StreamDevice, "run", lambda *_: stuck.wait(20) and IterationResult({}, {})
            )
            waiting = asyncio.ensure_future(streams.complete("y", max_tokens=5))
            events = await asyncio.wait_for(hung, 10.0)
            assert events[-2]["error"]["code"] == "device_failed"
            told = await asyncio.wait_for(waiting, 10.0)
            assert (told.status_code, told.json()["error"]["code"]) == (503, "device_failed")
            assert (await streams.client.get("/health")).status_code == 503
            live = await streams.client.get("/v2/health/live")
            assert live.status_code == 503
            assert (await streams.complete("z")).status_code == 503
            stuck.set()

    asyncio.run(main())


def test_a_poisonous_stream_ends_alone(
    serve_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            run = type(streams.device).run

            def run_or_fail(self: Any, subnet_id: str, chunks: Any) -> Any:
                if any(13 in chunk.ids for chunk in chunks):
                    raise RuntimeError("poison")
                return run(self, subnet_id, chunks)

            reading = asyncio.ensure_future(bystander(streams))
            await asyncio.sleep(0.02)
            monkeypatch.setattr(type(streams.device), "run", run_or_fail)
            poisoned = await streams.complete([13, 13], max_tokens=5)
            assert poisoned.status_code == 500
            assert poisoned.json()["error"]["code"] == "execution_failed"
            monkeypatch.undo()
            assert await reading == 1.0

    asyncio.run(main())


@pytest.mark.slow
def test_a_thousand_streams_at_once_end_once_each(serve_streams: Callable[..., Any]) -> None:
    """What can wait waits, what can't is refused; nobody is left without an end."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 1000 if files >= 2500 else (files - 100) // 2

    async def main() -> None:
        settings = {"max_queue": count * 3 // 5, "ttft_ms": 60_000}
        async with serve_streams(factor=0.001, **settings) as streams:
            ends: Counter[str] = Counter()

            async def one(i: int) -> None:
                async with streams.client.stream(
                    "POST",
                    "/v1/completions",
                    json={"model": "lm", "prompt": [1 + i % 200], "max_tokens": 8, "stream": True},
                    timeout=60.0,
                ) as response:
                    lines = [line async for line in response.aiter_lines() if line]
                    if response.status_code == 200:
                        ends["done" if lines[-1] == "data: [DONE]" else "torn"] += 1
                    else:
                        ends[json.loads(lines[0])["error"]["code"]] += 1

            await asyncio.gather(*(one(i) for i in range(count)))
            assert sum(ends.values()) == count
            assert set(ends) <= {"done", "queue_full"}
            assert ends["done"] >= count * 3 // 5
            status = streams.decoder.engine.status()
            assert sum(status.ended.values()) == count
            assert status.num_running == status.num_waiting == 0

    asyncio.run(main())


def test_a_drain_finishes_what_it_can(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams(drain_timeout_s=0.5) as streams:
            short = asyncio.ensure_future(streams.complete("a", max_tokens=10))
            long = asyncio.ensure_future(
                streams.events("/v1/completions", prompt="b", max_tokens=50_000)
            )
            await asyncio.sleep(0.2)
            with contextlib.suppress(asyncio.CancelledError):
                assert not await streams.server.drain()
            await streams.server.models.stop()
            assert (await short).json()["choices"][0]["finish_reason"] == "length"
            events = await long
            assert events[-2]["error"]["code"] == "draining"

    asyncio.run(main())
