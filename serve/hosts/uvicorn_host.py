"""The Ray-free host: uvicorn around the door, gRPC beside it where asked for.

It owns the signals: on SIGINT or SIGTERM the door refuses new queries, finishes the queued ones,
then closes.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import uvicorn

from serve.access.guard import UNIX
from serve.access.tls import tls_files
from serve.config import ServeConfig
from serve.hosts.assemble import build_server
from serve.hosts.connections.connection_limits import most_connections
from serve.hosts.doors.doors_host import serve_behind_doors
from serve.hosts.front import build_door
from serve.hosts.listeners import Listeners
from serve.hosts.tuned_process import tuned_process
from serve.hosts.uvicorn_listener import bind, end_within, in_url, uvicorn_config


class _DrainingHost(uvicorn.Server):
    """Drains the server before it closes connections, so that queued queries are answered."""

    def __init__(self, config: uvicorn.Config, listeners: Listeners) -> None:
        super().__init__(config)
        self._server = listeners.server
        self._listeners = listeners

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            scheme = "https" if self.config.is_ssl else "http"
            where = f"{scheme}://{_address(self.servers[0].sockets[0])}"
            if self._listeners.rpc_address:
                secure = "s" if self.config.is_ssl else ""
                where += f" and grpc{secure}://{self._listeners.rpc_address}"
            models = ", ".join(self._server.models.names)
            print(f"ready: serving {models} on {where} (Ctrl-C drains)", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._server.drain()
        end_within(self, self._server.drain_left_s())
        await super().shutdown(sockets)


def _address(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return f"{UNIX}{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{in_url(host)}:{port}"


def serve_forever(config: ServeConfig) -> None:
    """Serve until a signal. Raises ServeConfigError or ProfileError before anything is served."""
    if config.doors > 1:
        serve_behind_doors(config)
        return
    with contextlib.ExitStack() as resources:
        sock = resources.enter_context(contextlib.closing(bind(config.host, config.port)))
        if config.host.startswith(UNIX):
            path = Path(config.host.removeprefix(UNIX))
            resources.callback(path.unlink, missing_ok=True)
        elif config.grpc_port:  # gRPC binds for itself, once the models are ready: look now
            bind(config.host, config.grpc_port, setting="gRPC port").close()
        server = build_server(config, resources)
        listeners = Listeners(config, server, is_replica=False)
        door = build_door(server, listeners.opened)
        resources.enter_context(tuned_process())
        options = uvicorn_config(
            door,
            tls_files(config),
            max_connections=most_connections(config)[0],
            max_requests=config.max_connection_requests,
            max_age_s=config.max_connection_age_s,
            keep_alive_s=config.keep_alive_s,
            lag_s=server.loop_lag.now_s,
            intake=server.intake,
            lifespan="on",
        )
        host = _DrainingHost(options, listeners)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has drained
            host.run(sockets=[sock])
