"""uvicorn as a listener in a loop that belongs to somebody else: a Ray replica's own HTTP door."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from serve.access.tls import TlsFiles
from serve.config import ServeConfigError
from serve.hosts.bounded_request_head import BoundedHead


class _Listener(uvicorn.Server):
    """Leaves the signals to whom the process belongs to."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, host: str, port: int, *, drain_timeout_s: float, tls: TlsFiles | None = None
) -> AsyncIterator[None]:
    """Serve `app` on a port from this event loop; at the end, finish the open requests.

    Replicas on one host may share the port (the kernel spreads the connections), and a replica
    that replaces a dead one gets it at once.
    """
    sock = bind(host, port, is_shared=True)
    timeout_s = max(1, round(drain_timeout_s))
    options = {"lifespan": "off", "timeout_graceful_shutdown": timeout_s}
    server = _Listener(uvicorn_config(app, tls, **options))
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        sock.close()


def bind(host: str, port: int, *, is_shared: bool = False, setting: str = "port") -> socket.socket:
    """Bind a port before anything slow. Raises ServeConfigError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        text = f"{setting} {port} on {host} is not free ({error.strerror}): give another"
        raise ServeConfigError(text) from None
    return sock


def uvicorn_config(app: ASGIApp, tls: TlsFiles | None, **options: Any) -> uvicorn.Config:
    """Return the options of every uvicorn of ours.

    No logging configuration of its own: that would close the handlers of all others in the process.
    In a Ray replica a restarted controller then takes the replica for broken, and kills it.
    """
    options |= {"http": BoundedHead} | ({} if tls is None else tls.uvicorn_options())
    return uvicorn.Config(app, log_level="warning", log_config=None, access_log=False, **options)
