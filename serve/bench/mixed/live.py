"""Cells of part `mixed` that need a live server: costly JSON, a sick replica, open floods, images.

Each is a function that returns what it found. The device is the labelled timed executor (it sleeps
for the latency that was profiled on an RTX 2080 Ti and computes nothing); client and server share
the machine. The client judges every query from its intended send.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import aiohttp
import numpy as np

from serve.bench.mixed.cell import Finding, MixedCell
from serve.bench.mixed.hostile_clients import attacks
from serve.bench.mixed.image_overload import images
from serve.bench.mixed.timed_server import MODEL, SHAPE, TIMED, config_of, in_time, is_answered
from serve.bench.rows import Tell
from serve.bench.serving.server_process import ServerProcess, server_process
from serve.client import AsyncClient, Client
from serve.config import ServeConfig

_BELOW_SHAPE = (3, 128, 160)  # as JSON just below `max_json_bytes`
_JSON_S = 6.0
_JSON_QPS, _JSON_SLO_S = 50.0, 0.05
_SICK_CLIENTS = 12
_SICK_SLACK_S = 1.0
_HUNG_AFTER_S = 0.5
_CONNECTIONS = 40
_WARMING = 4  # connections of the same kind before: what is made once is no connection's
_WATCHED_S = 6.0
_SECRET = "benchmark-of-an-open-port"


def json16(tell: Tell) -> list[Finding]:
    """Binary queries beside JSON: one batch of 16 a second, and eight just below the limit."""
    cells = {
        "json16/in_time": (SHAPE, 16, 1, "one JSON batch of 16 a second"),
        "json16/just_below/in_time": (_BELOW_SHAPE, 1, 8, "eight of one a second, at once"),
    }
    found: list[Finding] = []
    for figure, (shape, count, times, what) in cells.items():
        text = _json_request(shape, count)
        with server_process(config_of(input_shape=shape, slo_ms=_JSON_SLO_S * 1e3)) as server:
            share, codes = asyncio.run(_beside_json(server, shape, text, times))
        detail = (
            f"{_JSON_QPS:g}/s at {_JSON_SLO_S * 1e3:g} ms beside {what} ({len(text)} bytes each,"
        )
        detail = f"{detail} answered {codes}); {TIMED}"
        tell(f"{figure}: {share:.3f}")
        found.append(Finding(figure, share, "fraction", ">= 0.98", detail))
    return found


def sick_replica(tell: Tell) -> list[Finding]:
    """Clients with kept connections to two replicas on one port, of which one comes to hang."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = config_of(door_port=port, grpc_port=None, hung_after_s=_HUNG_AFTER_S)
    with _replica(config) as sick, _replica(config):
        lost, lost_before = asyncio.run(_with_sick(f"http://127.0.0.1:{port}", sick))
    detail = (
        f"{_SICK_CLIENTS} clients, {_SICK_SLACK_S:g} s of slack, one of two replicas hangs; "
        f"counted from when that is known ({_HUNG_AFTER_S:g} s; {lost_before} lost one before); "
        f"{TIMED}"
    )
    tell(f"sick_replica: {lost} of {_SICK_CLIENTS} clients lost a query, {lost_before} before")
    return [Finding("sick_replica/clients_lost", lost, "count", "0", detail)]


def open_floods(tell: Tell) -> list[Finding]:
    """What a client without a token costs: memory, and the others' latency."""
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        tokens.write_text(f"bench infer {_SECRET}\n")
        for name, attack in attacks(MODEL).items():
            with server_process(config_of(tokens_file=str(tokens))) as server:
                grown, before_s, during_s = _flooded(server, attack)
            detail = (
                f"{_CONNECTIONS} connections after {_WARMING} that are closed; others' p99 "
                f"{before_s * 1e3:.1f} ms before, "
                f"{during_s * 1e3:.1f} ms meanwhile; {TIMED}"
            )
            figure = f"open/{name}"
            per_connection = grown / _CONNECTIONS / 1024
            tell(f"{figure}: {per_connection:.1f} KiB a connection, {detail}")
            memory = f"{figure}/memory_per_connection"
            found.append(Finding(memory, per_connection, "KiB", "<= 64", detail))
            ratio = during_s / before_s
            found.append(Finding(f"{figure}/p99_over_quiet", ratio, "ratio", "<= 2", detail))
    return found


CELLS = {
    "json16": json16,
    "images": images,
    "sick_replica": sick_replica,
    "open": open_floods,
}
"""The cells by name: each a function that returns what it found."""


def live_cells(tell: Tell) -> list[MixedCell]:
    """Return the cells; `tell` hears of each step."""
    return [MixedCell(name, partial(measure, tell)) for name, measure in CELLS.items()]


async def _beside_json(
    server: ServerProcess, shape: tuple[int, ...], text: bytes, times: int
) -> tuple[float, list[int]]:
    """Return the share of binary queries in time, and how the JSON ones were answered."""
    sample = np.zeros((1, *shape), dtype=np.uint8)
    url, codes = f"{server.url}/v2/models/{MODEL}/infer", set[int]()
    async with (
        AsyncClient(server.url, MODEL, slo_ms=_JSON_SLO_S * 1e3) as client,
        aiohttp.ClientSession() as session,
    ):

        async def ask(_: int) -> bool:
            return await is_answered(client, sample)

        async def post() -> None:
            with contextlib.suppress(aiohttp.ClientError):  # refused while it is sent
                async with session.post(url, data=text) as answer:
                    codes.add(answer.status)

        async def every_second() -> None:
            while True:
                await asyncio.gather(*(post() for _ in range(times)))
                await asyncio.sleep(1.0)

        await in_time(ask, rate_qps=_JSON_QPS, duration_s=1.0, slo_s=_JSON_SLO_S)  # warm
        beside = asyncio.ensure_future(every_second())
        share = await in_time(ask, rate_qps=_JSON_QPS, duration_s=_JSON_S, slo_s=_JSON_SLO_S)
        beside.cancel()
        return share, sorted(codes)


async def _with_sick(url: str, sick: subprocess.Popen[str]) -> tuple[int, int]:
    """Return how many clients lost a query once the fault was known, and before."""
    sample = np.zeros((1, *SHAPE), dtype=np.uint8)
    lost, lost_before = set[int](), set[int]()
    is_known = is_over = False

    async def keep_asking(index: int) -> None:
        async with AsyncClient(url, MODEL, slo_ms=_SICK_SLACK_S * 1e3) as client:
            while not is_over:
                was_known = is_known
                if not await is_answered(client, sample):
                    (lost if was_known else lost_before).add(index)
                await asyncio.sleep(0.1)

    asking = [asyncio.ensure_future(keep_asking(i)) for i in range(_SICK_CLIENTS)]
    await asyncio.sleep(2.0)
    sick.send_signal(signal.SIGUSR1)
    await asyncio.sleep(2 * _HUNG_AFTER_S + 0.5)
    is_known = True
    await asyncio.sleep(5.0)
    is_over = True
    await asyncio.gather(*asking)
    return len(lost), len(lost_before)


@contextlib.contextmanager
def _replica(config: ServeConfig) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "serve.json"
        path.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
        command = [sys.executable, "-m", "serve.bench.mixed.shared_replica", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None, "asked for"
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the replica did not come up")
            yield process
        finally:
            process.kill()  # its device may hang
            process.communicate()


def _flooded(
    server: ServerProcess, attack: Callable[[str, str], socket.socket]
) -> tuple[int, float, float]:
    """Return the bytes that the server grew by, and the others' p99 before and meanwhile."""
    addresses = server.url.removeprefix("http://"), server.rpc_url.removeprefix("grpc://")
    with contextlib.ExitStack() as opened:
        for _ in range(_WARMING):
            opened.enter_context(attack(*addresses))
    with _asking(server.url) as latencies_s:
        time.sleep(_WATCHED_S)
        before_s, before = _p99(latencies_s), server.resident_bytes()
        latencies_s.clear()
        with server.watched() as resident, contextlib.ExitStack() as opened:
            for _ in range(_CONNECTIONS):
                opened.enter_context(attack(*addresses))
            time.sleep(_WATCHED_S)
            grown = max(resident) - before
        return max(grown, 0), before_s, _p99(latencies_s)


@contextlib.contextmanager
def _asking(url: str) -> Iterator[list[float]]:
    """Keep asking, one query after the other; yields the latencies in seconds."""
    latencies_s: list[float] = []
    is_over = threading.Event()
    sample = np.zeros((1, *SHAPE), dtype=np.uint8)

    def ask() -> None:
        with Client(url, MODEL, slo_ms=20_000, token=_SECRET) as client:
            while not is_over.wait(0.005):
                latencies_s.append(client.infer(sample).latency_s)

    thread = threading.Thread(target=ask, name="others")
    thread.start()
    try:
        yield latencies_s
    finally:
        is_over.set()
        thread.join()


def _p99(latencies_s: Sequence[float]) -> float:
    return float(np.quantile(latencies_s, 0.99))


def _json_request(shape: tuple[int, ...], count: int) -> bytes:
    rng = np.random.default_rng(0)
    data = rng.integers(100, 256, count * int(np.prod(shape))).tolist()
    tensor = {"name": "input", "datatype": "UINT8", "shape": [count, *shape], "data": data}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
