"""`Listeners`: the ports that a host opens beside its own while the models are ready.

Without Ray that is gRPC; a Ray replica also listens itself for HTTP, because a request through
Ray's proxy costs milliseconds, of latency and of CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.types import ASGIApp

from serve.access.tls import tls_files
from serve.config import ServeConfig
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.doors.server import Server
from serve.hosts.uvicorn_listener import listening


class Listeners:
    """Opens what `config` names; `rpc_port` is the port of gRPC while it is open.

    `is_replica`: one of several that may share the ports, with `door_port` to listen on.
    """

    def __init__(self, config: ServeConfig, server: Server, *, is_replica: bool) -> None:
        self._config = config
        self.server = server
        self._is_replica = is_replica
        self.rpc_port: int | None = None

    @contextlib.asynccontextmanager
    async def opened(self, app: ASGIApp | None = None) -> AsyncIterator[None]:
        """Listen during an `async with` block. Raises ServeConfigError for a taken port.

        `app` is what a replica answers HTTP with.
        """
        config = self._config
        tls = tls_files(config)
        async with contextlib.AsyncExitStack() as stack:
            if config.grpc_port is not None:
                rpc = rpc_listening(
                    RpcDoor(self.server),
                    config.host,
                    config.grpc_port,
                    max_body_bytes=config.max_body_bytes,
                    drain_timeout_s=config.drain_timeout_s,
                    is_shared=self._is_replica,
                    tls=tls,
                )
                self.rpc_port = await stack.enter_async_context(rpc)
            if app is not None and config.door_port is not None:
                http = listening(
                    app,
                    config.host,
                    config.door_port,
                    drain_timeout_s=config.drain_timeout_s,
                    tls=tls,
                )
                await stack.enter_async_context(http)
            yield
