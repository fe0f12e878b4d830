"""What the OpenAI door costs beside the engine: processor time per token, time to the first byte.

The server runs in a process of its own on the timed decoder, so its processor time is the door's,
the engine's and the scheduler's and nobody computes; what the same streams cost an engine without
a door is measured beside it and taken off. The client is this process.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from serve.bench.rows import Row, Tell, row
from serve.bench.serving.server_process import ServerProcess, server_process
from serve.bench.streams.live import serve_live
from serve.bench.streams.setting import StreamSetting
from serve.config import parse_config
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_query import StreamQuery
from subnetact.timed_decoder import TimedDecoder

STREAMS = 64
TOKENS = 200
ITERATION_S = 0.025
"""What an iteration of so many decodes shall take: readers of forty tokens a second."""
_PROBES = 60
_POLICY = "fixed:largest"
_BAR_US = 150


def door_rows(
    setting: StreamSetting, table: LatencyProfile, tell: Tell, *, tokens: int = TOKENS
) -> list[Row]:
    """Return the rows of the door; `table` is the profile whose costs are scaled to the target."""
    decodes = IterationWork(STREAMS, STREAMS, STREAMS, STREAMS * tokens)
    best = setting.costs.subnet_ids[-1]
    costs = setting.costs.scaled(ITERATION_S / setting.costs.seconds(best, decodes))
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.json"
        costs.in_profile(table).save(profile)
        config = parse_config(
            {
                "device": "timed",
                "profile": str(profile),
                "model_name": "lm",
                "policy": _POLICY,
                "port": 0,
                "max_running": STREAMS,
            }
        )
        with server_process(config) as server:
            asyncio.run(_read_all(server.url, STREAMS, 20))  # warm
            spent_s, taken_s = _spent(server, lambda: _read_all(server.url, STREAMS, tokens))
            beyond_s = asyncio.run(_first_bytes(server.url))
    engine_s = _engine_alone(costs, tokens)
    count = STREAMS * tokens
    whole_us, engine_us = spent_s / count * 1e6, engine_s / count * 1e6
    tell(
        f"door: {whole_us:.0f} us of processor time per token, {engine_us:.0f} us of them the "
        f"engine's; first byte {statistics.median(beyond_s) * 1e3:.2f} ms beyond the engine's"
    )
    detail = {
        "streams": STREAMS,
        "tokens_each": tokens,
        "tokens_per_s": round(count / taken_s, 1),
        "policy": _POLICY,
        "device": f"timed, {ITERATION_S * 1e3:g} ms an iteration",
        "server_us_per_token": round(whole_us, 2),
        "engine_us_per_token": round(engine_us, 2),
    }
    first = {"probes": _PROBES, "p95_ms": round(_percentile(beyond_s, 0.95) * 1e3, 3)}
    return [
        row(
            "streams/door/processor_us_per_token",
            whole_us - engine_us,
            "us",
            {**detail, "bar": f"at most {_BAR_US}"},
        ),
        row("streams/door/first_byte_beyond_engine", statistics.median(beyond_s), "s", first),
    ]


def _spent(server: ServerProcess, work: Any) -> tuple[float, float]:
    """Return processor and wall seconds of a server while `work` runs."""
    before_s, began_s = _cpu_s(server.pid), time.perf_counter()
    asyncio.run(work())
    return _cpu_s(server.pid) - before_s, time.perf_counter() - began_s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _read_all(url: str, streams: int, tokens: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_read(session, url, tokens) for _ in range(streams)))


async def _read(session: aiohttp.ClientSession, url: str, tokens: int) -> None:
    async with session.post(f"{url}/v1/completions", json=_body(tokens)) as response:
        response.raise_for_status()
        async for _ in response.content.iter_any():
            pass


async def _first_bytes(url: str) -> list[float]:
    """Return how much later than the engine's first output the first byte was there, each time."""
    found: list[float] = []
    async with aiohttp.ClientSession() as session:
        for _ in range(_PROBES):
            sent_s = time.perf_counter()
            body = {**_body(1), "stream_options": {"include_usage": True}}
            async with session.post(f"{url}/v1/completions", json=body) as response:
                first_s = 0.0
                text = b""
                async for data in response.content.iter_any():
                    first_s = first_s or time.perf_counter() - sent_s
                    text += data
            ttft_ms = float(text.rpartition(b'"ttft_ms": ')[2].partition(b",")[0])
            found.append(first_s - ttft_ms * 1e-3)
    return found


def _body(tokens: int) -> dict[str, Any]:
    return {
        "model": "lm",
        "prompt": [65, 66, 67, 68],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "slo": {"ttft_ms": 60_000, "tpot_ms": 1000},
    }


def _engine_alone(costs: IterationCosts, tokens: int) -> float:
    """Return the processor seconds of an engine that serves the same streams without a door."""
    queries = [StreamQuery(i, 0.0, 4, tokens, 60.0, 1.0) for i in range(STREAMS)]
    decoder = TimedDecoder(costs)
    before_s = time.process_time()
    asyncio.run(serve_live(queries, costs, _POLICY, decoder, decoder.vocab_size))
    return time.process_time() - before_s


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
