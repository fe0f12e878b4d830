"""uvicorn as a listener in a loop that belongs to somebody else: a Ray replica's own HTTP door."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from serve.access.guard import UNIX
from serve.access.tls import TlsFiles
from serve.config import ServeConfigError
from serve.doors.rest import RestDoor
from serve.hosts.connections.bounded_connection import bounded
from serve.models.intake import Intake
from serve.openai.door import OpenAIDoor


class _Listener(uvicorn.Server):
    """Leaves the signals to whom the process belongs to; says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    drain_left_s: Callable[[], float],
    tls: TlsFiles | None = None,
    own: socket.socket | None = None,
    inherited: socket.socket | None = None,
    **limits: Any,
) -> AsyncIterator[Callable[[], None]]:
    """Serve `app` on a port from this event loop; at the end, finish the open requests.

    Processes on one host may share the port (the kernel spreads the connections), and one that
    replaces a dead one gets it at once; `own` is bound to one besides that nobody shares. One that
    is bound elsewhere is `inherited`.
    Yields what closes the ports early, and each connection behind its answer, so that clients go to
    the others; `limits` are those of `uvicorn_config`.
    """
    socks = [inherited or bind(host, port, is_shared=True), *([] if own is None else [own])]
    server = _Listener(uvicorn_config(app, tls, lifespan="off", **limits))
    task = asyncio.ensure_future(server.serve(sockets=socks))
    try:
        await server.listens.wait()  # what is announced from here on is there
        yield lambda: stop_listening(server)
    finally:
        end_within(server, drain_left_s())
        server.should_exit = True
        await task
        for sock in socks:
            sock.close()


def stop_listening(server: uvicorn.Server) -> None:
    """Close a server's ports, idle connections, and the others once they are answered."""
    for listener in getattr(server, "servers", ()):
        listener.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()


def end_within(server: uvicorn.Server, timeout_s: float) -> None:
    """Give the open requests of a server that is told to end so long, in whole seconds."""
    server.config.timeout_graceful_shutdown = max(1, math.ceil(timeout_s))


def bind(host: str, port: int, *, is_shared: bool = False, setting: str = "port") -> socket.socket:
    """Bind a port, or a UNIX socket (`unix:PATH`), before anything slow.

    Raises ServeConfigError when it is taken. Who may connect to a UNIX socket, the umask says.
    """
    if host.startswith(UNIX):
        return _bind_path(host.removeprefix(UNIX))
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


def _bind_path(path: str) -> socket.socket:
    """Bind a UNIX socket; one that a server left behind which is no more is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _is_listened_to(path):
            os.unlink(path)
    except OSError:
        pass  # there is none, or `bind` says what is wrong
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        text = f"host unix:{path} can't be bound ({error.strerror or error}): give another path"
        raise ServeConfigError(text) from None
    return sock


def _is_listened_to(path: str) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return False
        return True


def in_url(host: str) -> str:
    """Return a host as it stands in a URL: an address of IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith(UNIX) else host


def uvicorn_config(
    app: ASGIApp,
    tls: TlsFiles | None,
    *,
    max_connections: int,
    keep_alive_s: float = 60.0,
    lag_s: Callable[[], float] = lambda: 0.0,
    max_requests: int | None = None,
    max_age_s: float | None = None,
    intake: Intake | None = None,
    **options: Any,
) -> uvicorn.Config:
    """Return the options of every uvicorn of ours; see `BoundedConnection` for the limits.

    No logging configuration of its own: that would close the handlers of all others in the process.
    In a Ray replica a restarted controller then takes the replica for broken, and kills it.
    Whoever sends `X-Forwarded-For` is who it says to a proxy's server only: the guard reads it.
    """
    door = app if isinstance(app, RestDoor | OpenAIDoor) else None
    limits: dict[str, Any] = {"max_requests": max_requests, "max_age_s": max_age_s, "door": door}
    limits["intake"] = intake
    options |= {
        "http": bounded(max_connections, lag_s, **limits),
        "proxy_headers": False,
        "ws": "none",
        "timeout_keep_alive": keep_alive_s,
    }
    if tls is not None:
        context = tls.server_context()
        options["ssl_context_factory"] = lambda config, default: context
    return uvicorn.Config(app, log_level="warning", log_config=None, access_log=False, **options)
