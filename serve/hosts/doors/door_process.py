"""A door's process: HTTP and gRPC on ports that other doors share, for engines in another process.

`python -m serve.hosts.doors.door_process LINK MEMORY RATES LISTENER`, four inherited descriptors,
is started by `DoorProcesses`, which tells it what to serve, when to end, and starts it again when
it dies. It leaves signals to that process, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn

from serve.access.shared_rates import SharedRates
from serve.access.tls import tls_files
from serve.config import ServeConfig, parse_config
from serve.doors.rest import RestDoor
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.hosts.connections.connection_limits import most_connections
from serve.hosts.listeners import closed_when_gone
from serve.hosts.tuned_process import tuned_process
from serve.hosts.uvicorn_listener import listening
from serve.link.door_link import DoorLink
from serve.link.linked_server import LinkedServer, build_linked_server
from serve.link.payload_ring import PayloadRing
from serve.observe.logs import configure_logs

_BEAT_S = 0.25


async def serve_door(
    link_socket: socket.socket, memory: int, rates: int, listener: socket.socket | None
) -> None:
    """Serve until the engines' process says so or is gone; `listener` None: bind the port."""
    servers: list[LinkedServer] = []
    link = DoorLink(PayloadRing(memory), lambda state: servers[0].use(state))
    await link.connect(link_socket)
    begin = await link.begun
    config = parse_config(begin["config"])
    configure_logs(config.log_format)
    with contextlib.ExitStack() as resources:
        shared = SharedRates(rates)
        server = build_linked_server(config, begin["models"], link, shared, resources)
        server.use(begin["state"])
        servers.append(server)
        resources.enter_context(tuned_process())
        door = RestDoor(server)
        async with door.running(), _open_ports(config, server, door, listener):
            link.send("ready")
            beating = asyncio.ensure_future(_beat(server))
            server.end_within(await link.stopped)
            beating.cancel()
            await link.ended(server.drain_left_s())


@contextlib.asynccontextmanager
async def _open_ports(
    config: ServeConfig, server: LinkedServer, door: RestDoor, listener: socket.socket | None
) -> AsyncIterator[None]:
    tls = tls_files(config)
    most_http, most_rpc = most_connections(config)
    limits: dict[str, Any] = {
        "max_connections": most_http,
        "max_requests": config.max_connection_requests,
        "max_age_s": config.max_connection_age_s,
        "keep_alive_s": config.keep_alive_s,
        "lag_s": server.loop_lag.now_s,
        "intake": server.intake,
    }
    async with contextlib.AsyncExitStack() as stack:
        closing: list[Callable[[], object]] = []
        if config.grpc_port is not None:
            rpc = rpc_listening(
                RpcDoor(server),
                config.host,
                config.grpc_port,
                max_connections=most_rpc,
                max_age_s=config.max_connection_age_s,
                is_shared=True,
                has_own=False,
                tls=tls,
            )
            port = await stack.enter_async_context(rpc)
            closing.append(lambda: asyncio.ensure_future(port.close()))
        limits |= {"drain_left_s": server.drain_left_s, "tls": tls, "inherited": listener}
        http = listening(door, config.host, config.port, **limits)
        await stack.enter_async_context(http)
        with closed_when_gone(server, closing):
            yield


async def _beat(server: LinkedServer) -> None:
    """Tell how the door is, for the metrics of all doors."""
    while True:
        server.link.send("beat", server.loop_lag.longest_s(), server.budget.used_bytes)
        await asyncio.sleep(_BEAT_S)


def main() -> None:
    """Serve with the descriptors that the arguments name."""
    for number in (signal.SIGINT, signal.SIGTERM):  # who sends them to all of us means our parent
        signal.signal(number, signal.SIG_IGN)
    link, memory, rates, listener = map(int, sys.argv[1:])
    sock = socket.socket(fileno=link)
    shared = None if listener < 0 else socket.socket(fileno=listener)
    loops = uvicorn.Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loops) as runner, contextlib.suppress(ConnectionError):
        runner.run(serve_door(sock, memory, rates, shared))
    os.close(memory)


if __name__ == "__main__":
    main()
