"""The Ray-free host with doors in processes of their own: engines here, `DoorProcesses` in front.

It owns the signals: on SIGINT or SIGTERM new queries are refused, the queued ones finished, then
the doors answer what is open and end. A second signal ends all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import uvicorn

from serve.access.guard import UNIX
from serve.config import ServeConfig, ServeConfigError
from serve.doors.server import Server
from serve.hosts.assemble import build_server
from serve.hosts.doors.door_processes import DoorPorts, DoorProcesses, reserved
from serve.hosts.tuned_process import tuned_process
from serve.hosts.uvicorn_listener import in_url

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve_behind_doors(config: ServeConfig) -> None:
    """Serve until a signal. Raises ServeConfigError or ProfileError before anything is served."""
    with contextlib.ExitStack() as resources:
        ports = resources.enter_context(reserved(config))
        server = build_server(ports.config, resources)
        if server.models.decoders:
            raise ServeConfigError(
                f"doors is {config.doors}, allowed 1 where a decoder is served: the process that "
                "writes streams answers them"
            )
        resources.enter_context(tuned_process())
        loops = uvicorn.Config("", log_config=None).get_loop_factory()
        runner = resources.enter_context(asyncio.Runner(loop_factory=loops))
        runner.run(_serve(ports, server))


async def _serve(ports: DoorPorts, server: Server) -> None:
    doors = DoorProcesses(ports, server)
    await server.models.start()
    try:
        with _signalled() as ends:
            try:
                await doors.start()
                models = ", ".join(server.models.names)
                where = _where(ports.config)
                print(f"ready: serving {models} on {where} (Ctrl-C drains)", flush=True)
                await ends[0].wait()
                draining = asyncio.ensure_future(server.drain())
                await doors.tell()
                await _first(draining, ends[1])
            finally:
                await _first(asyncio.ensure_future(doors.stop(server.drain_left_s())), ends[1])
    finally:
        await server.models.stop()


@contextlib.contextmanager
def _signalled() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Yield what is set by the first signal and by the second."""
    loop, events = asyncio.get_running_loop(), (asyncio.Event(), asyncio.Event())

    def came() -> None:
        events[events[0].is_set()].set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, came)
    try:
        yield events
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _first(work: asyncio.Task[Any], ended: asyncio.Event) -> None:
    """Await some work, or cancel it at an event."""
    waiting = asyncio.ensure_future(ended.wait())
    await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not work.done():
        work.cancel()
    await asyncio.gather(work, return_exceptions=True)


def _where(config: ServeConfig) -> str:
    if config.host.startswith(UNIX):
        return f"http://{config.host}"
    host = in_url(config.host)
    secure = "s" if config.tls_cert is not None else ""
    where = f"http{secure}://{host}:{config.port}"
    if config.grpc_port is not None:
        where += f" and grpc{secure}://{host}:{config.grpc_port}"
    return where
