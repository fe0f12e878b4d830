"""The Ray-free host: uvicorn around the same door, on a port of this host.

On SIGINT or SIGTERM the door refuses new queries, finishes the queued ones, then closes.
"""

from __future__ import annotations

import contextlib
import socket

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


def bind(host: str, port: int) -> socket.socket:
    """Bind the server's port before anything slow. Raises ConfigError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port {port} on {host} is not free ({error.strerror}): give another"
        ) from None
    return sock


def serve_forever(config: ServeConfig) -> None:
    """Serve until a signal. Raises ConfigError or ProfileError before anything is served."""
    with contextlib.ExitStack() as resources:
        sock = resources.enter_context(contextlib.closing(bind(config.host, config.port)))
        door = build_door(config, resources)
        server = _DrainingServer(
            uvicorn.Config(door, log_level="warning", access_log=False, lifespan="on"), door
        )
        resources.enter_context(tuned_process())
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has drained
            server.run(sockets=[sock])
