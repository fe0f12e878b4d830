"""A UNIX socket as the address of our clients, over HTTP and gRPC, and of the commands."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serve.client import AsyncClient, Client
from serve.client.addresses import request_base, socket_path
from serve.client.dial import dial
from serve.client.errors import ConnectionLostError
from serve.client.replicas import split_urls
from serve.client.rest_answers import ClientError
from traces.open_loop.target import ReplayRequest

SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)
SAMPLE[0, 0, 0, 0] = 7  # what the timed device answers


@pytest.fixture(scope="module")
def server(running, profile, tmp_path_factory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("unix")
    profile.save(folder / "profile.json")
    options = ("--no-ray", "--host", f"unix:{folder / 's'}", "--slo-ms", "20000")
    with running(folder / "profile.json", *options) as process:
        yield process


@pytest.mark.parametrize("form", ["http", "short", "grpc"])
def test_both_clients_ask_at_a_unix_socket(server, form: str):
    """By the addresses that the server prints, and by the short one of HTTP."""
    printed = server.rpc_url if form == "grpc" else server.url
    url = printed.removeprefix("http://") if form == "short" else printed
    with Client(url, "tiny") as client:
        assert client.is_ready()
        assert client.infer(SAMPLE).labels.tolist() == [7]

    async def ask() -> list[int]:
        async with AsyncClient(url, "tiny") as client:
            return (await client.infer(SAMPLE)).labels.tolist()

    assert asyncio.run(ask()) == [7]


def test_a_replay_and_top_take_it_too(server):
    async def ask() -> str:
        target, model = await dial(server.url.removeprefix("http://"))
        try:
            request = ReplayRequest(query_id=0, payload=SAMPLE[0], slo_s=20.0)
            return f"{model.name} {(await target.infer(request)).status}"
        finally:
            await target.close()

    assert asyncio.run(ask()) == "tiny ok"
    shown = subprocess.run(
        [sys.executable, "-m", "serve", "top", "--once", server.url],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "tiny" in shown.stdout


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_errors_name_the_socket_that_was_given(tmp_path):
    url = f"unix:{tmp_path / 'nobody'}"
    with (
        Client(url, "tiny", slo_ms=50) as client,
        pytest.raises(ConnectionLostError, match="nobody"),
    ):
        client.infer(SAMPLE)
    gc.collect()  # httpcore leaves a socket that did not connect to the collector
    with pytest.raises(ClientError, match=r"nobody.*no answer"):
        asyncio.run(dial(url))


def test_addresses_of_one_protocol_go_together_whatever_their_form():
    assert split_urls("unix:/run/a, http://unix:/run/b") == (
        "http://unix:/run/a",
        "http://unix:/run/b",
    )
    assert socket_path("unix:/run/a") == socket_path("http://unix:/run/a") == "/run/a"
    assert socket_path("http://unix.example:8000") is None
    assert request_base("http://unix:/run/a") == "http://localhost"
    assert request_base("http://host:8000/") == "http://host:8000"
