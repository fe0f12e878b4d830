"""`Listeners`: the ports that a host opens beside its own while the models are ready.

Without Ray that is gRPC; a Ray replica also listens itself for HTTP, because a request through
Ray's proxy costs milliseconds, of latency and of CPU. Once the server drains, or its device has
failed, they are closed: new connections go to another replica.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.types import ASGIApp

from serve.access.tls import tls_files
from serve.config import ServeConfig
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.doors.server import Server
from serve.hosts.connections.connection_limits import most_connections
from serve.hosts.uvicorn_listener import bind, listening

_WATCH_S = 0.05
_EVERYWHERE = ("0.0.0.0", "::")


class Listeners:
    """Opens what `config` names; `rpc_port` is the port of gRPC, `rpc_address` its address.

    `is_replica`: one of several that may share the ports, with `door_port` to listen on. It then
    has ports of its own besides, at `own_urls`, where clients reach this one and no other.
    """

    def __init__(
        self, config: ServeConfig, server: Server, *, is_replica: bool, reached_at: str = ""
    ) -> None:
        """Open nothing yet; others reach this host at `reached_at` where it listens everywhere."""
        self._reached_at = reached_at
        self._config = config
        self.server = server
        self._is_replica = is_replica
        self.rpc_port: int | None = None
        self.rpc_address = ""
        self.own_urls: list[str] = []

    @contextlib.asynccontextmanager
    async def opened(self, app: ASGIApp | None = None) -> AsyncIterator[None]:
        """Listen during an `async with` block. Raises ServeConfigError for a taken port.

        `app` is what a replica answers HTTP with.
        """
        config, server = self._config, self.server
        tls = tls_files(config)
        most_http, most_rpc = most_connections(config)
        async with contextlib.AsyncExitStack() as stack:
            closing: list[Callable[[], object]] = []
            if config.grpc_port is not None:
                rpc = rpc_listening(
                    RpcDoor(server),
                    config.host,
                    config.grpc_port,
                    max_connections=most_rpc,
                    max_age_s=config.max_connection_age_s,
                    is_shared=self._is_replica,
                    tls=tls,
                )
                port = await stack.enter_async_context(rpc)
                self.rpc_port, self.rpc_address = port.port, port.address
                if self._is_replica:
                    self._add_own("grpc", port.own_port)
                closing.append(lambda: asyncio.ensure_future(port.close()))
            if app is not None and config.door_port is not None:
                own = bind(config.host, 0)
                self._add_own("http", own.getsockname()[1])
                http = listening(
                    app,
                    config.host,
                    config.door_port,
                    drain_left_s=server.drain_left_s,
                    tls=tls,
                    own=own,
                    max_connections=most_http,
                    max_requests=config.max_connection_requests,
                    max_age_s=config.max_connection_age_s,
                    keep_alive_s=config.keep_alive_s,
                    lag_s=server.loop_lag.now_s,
                    intake=server.intake,
                )
                closing.append(await stack.enter_async_context(http))
            with closed_when_gone(server, closing):
                yield

    def _add_own(self, scheme: str, port: int) -> None:
        host = self._config.host
        if host in _EVERYWHERE:
            host = self._reached_at or "127.0.0.1"
        name = f"[{host}]" if ":" in host else host
        secure = "s" if self._config.tls_cert is not None else ""
        self.own_urls.append(f"{scheme}{secure}://{name}:{port}")


@contextlib.contextmanager
def closed_when_gone(server: Server, closing: list[Callable[[], object]]) -> Iterator[None]:
    """Close ports as soon as the server takes no queries any more: others may.

    A replica whose device hangs would still get its share of new connections, and keep those of
    gRPC, until it is replaced.
    """

    async def watch() -> None:
        while server.models.takes_queries():
            await asyncio.sleep(_WATCH_S)
        for close in closing:
            close()

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()
