"""A server of streams on a port, in the test's own event loop, on a decoder that sleeps."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from serve.config import parse_config
from serve.doors.server import Server
from serve.hosts.assemble import build_server
from serve.hosts.front import build_door
from serve.hosts.uvicorn_listener import bind, listening
from serve.models.served_decoder import ServedDecoder
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts
from subnetact.timed_decoder import TimedDecoder

EXAMPLE = LatencyProfile.load("profiles/smollm2_135m_example.json")


class Streams(NamedTuple):
    """A running server of streams, and a client of it."""

    server: Server
    client: httpx.AsyncClient
    url: str

    @property
    def decoder(self) -> ServedDecoder:
        return self.server.models.decoders[0]

    @property
    def device(self) -> TimedDecoder:
        executor = self.decoder.engine._device.executor
        assert isinstance(executor, TimedDecoder)
        return executor

    async def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        body = {"model": "lm", "prompt": prompt, "temperature": 0, **fields}
        return await self.client.post("/v1/completions", json=body)

    async def events(self, path: str, headers: Any = None, **fields: Any) -> list[Any]:
        """Return the data of a stream's events, parsed; `[DONE]` stays a text."""
        body = {"model": "lm", "stream": True, "temperature": 0, **fields}
        found: list[Any] = []
        async with self.client.stream("POST", path, json=body, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                if line:
                    data = line.removeprefix("data: ")
                    found.append(data if data == "[DONE]" else json.loads(data))
        return found


def fast_profile(path: Path, factor: float = 0.02) -> Path:
    """Write the example's costs, so much faster, to a file."""
    costs = IterationCosts.of(EXAMPLE).scaled(factor)
    costs.in_profile(EXAMPLE).save(path)
    return path


@pytest.fixture
def serve_streams(
    tmp_path: Path,
) -> Callable[..., contextlib.AbstractAsyncContextManager[Streams]]:
    """`serve_streams(factor=..., **settings)` is a context with a server of a timed decoder."""

    @contextlib.asynccontextmanager
    async def start(factor: float = 0.02, **settings: Any) -> AsyncIterator[Streams]:
        profile = fast_profile(tmp_path / "profile.json", factor)
        fields = {"device": "timed", "profile": str(profile), "model_name": "lm", **settings}
        async with run_streams(**fields) as streams:
            yield streams

    return start


@contextlib.asynccontextmanager
async def run_streams(**settings: Any) -> AsyncIterator[Streams]:
    config = parse_config(settings)
    with contextlib.ExitStack() as resources:
        server = build_server(config, resources)
        await server.models.start()
        door = build_door(server, contextlib.nullcontext)
        own = bind("127.0.0.1", 0)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # a reader that sleeps is felt
        url = f"http://127.0.0.1:{own.getsockname()[1]}"
        listener = listening(
            door,
            "127.0.0.1",
            0,
            drain_left_s=lambda: 1.0,
            own=own,
            max_connections=config.max_connections or 2000,
        )
        try:
            with server.loop_lag.running():
                async with listener:
                    limits = httpx.Limits(max_connections=None)
                    async with httpx.AsyncClient(
                        base_url=url, timeout=30.0, limits=limits
                    ) as client:
                        yield Streams(server, client, url)
        finally:
            await server.models.stop()


@pytest.fixture
def serving_streams() -> Callable[..., contextlib.AbstractAsyncContextManager[Streams]]:
    """`serving_streams(**settings)` is a context with a server of whatever they name."""
    return run_streams
