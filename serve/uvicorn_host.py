"""uvicorn around the door: as the Ray-free host, and as the listener inside a Ray replica.

As a host it owns the signals: on SIGINT or SIGTERM the door refuses new queries, finishes the
queued ones, then closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from serve.assemble import build_door
from serve.config import ConfigError, ServeConfig
from serve.process import tuned_process
from serve.rest import Door


class _DrainingServer(uvicorn.Server):
    """Drains the door before it closes connections, so that queued queries are answered."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            models = ", ".join(self._door.models)
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"ready: serving {models} on http://{host}:{port} (Ctrl-C drains)", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._door.drain()
        await super().shutdown(sockets)


class _Listener(uvicorn.Server):
    """Serves in a loop that belongs to somebody else, signals included."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def listening(
    door: Door, host: str, port: int, *, drain_timeout_s: float
) -> AsyncIterator[None]:
    """Serve `door` on a port from this event loop; at the end, finish the open requests.

    Replicas on one host may share the port (the kernel spreads the connections), and a replica
    that replaces a dead one gets it at once.
    """
    sock = bind(host, port, is_shared=True)
    timeout_s = max(1, round(drain_timeout_s))
    server = _Listener(_uvicorn_config(door, lifespan="off", timeout_graceful_shutdown=timeout_s))
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        sock.close()


def bind(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Bind a port before anything slow. Raises ConfigError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port {port} on {host} is not free ({error.strerror}): give another"
        ) from None
    return sock


def _uvicorn_config(door: Door, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(door, log_level="warning", access_log=False, **options)


def serve_forever(config: ServeConfig) -> None:
    """Serve until a signal. Raises ConfigError or ProfileError before anything is served."""
    with contextlib.ExitStack() as resources:
        sock = resources.enter_context(contextlib.closing(bind(config.host, config.port)))
        door = build_door(config, resources)
        server = _DrainingServer(_uvicorn_config(door, lifespan="on"), door)
        resources.enter_context(tuned_process())
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has drained
            server.run(sockets=[sock])
