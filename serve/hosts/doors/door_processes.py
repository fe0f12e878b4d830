"""`DoorProcesses`: the doors of one server, each a process; started, watched, started again, ended.

They share the ports (SO_REUSEPORT: the kernel spreads connections), which this process holds
bound, so that a door that is started again gets them. What a door that dies had open is withdrawn;
its memory has no name and goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from serve.access.guard import UNIX
from serve.access.shared_rates import make_rates_memory
from serve.config import ServeConfig, ServeConfigError
from serve.doors.server import Server
from serve.hosts.uvicorn_listener import bind
from serve.link.door_peer import DoorPeer
from serve.link.payload_ring import PayloadRing, make_memory
from serve.link.wire import pack_model, pack_state

logger = logging.getLogger(__name__)

_RING_PAYLOADS = 4  # of the largest size: see `DoorPeer`
_LEAST_RING_BYTES = 2**20
_STATE_POLL_S = 0.05
_STARTING_S = 60.0
_LONG_LIFE_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_KILLED_AFTER_S = 2.0  # beyond the time that a door was given


class DoorPorts(NamedTuple):
    """What doors listen on: the settings with the ports' numbers, and a listener to inherit."""

    config: ServeConfig
    listener: socket.socket | None


@contextlib.contextmanager
def reserved(config: ServeConfig) -> Iterator[DoorPorts]:
    """Hold the ports of a server for the length of a `with` block. Raises ServeConfigError."""
    with contextlib.ExitStack() as stack:
        if config.host.startswith(UNIX):
            listener = stack.enter_context(contextlib.closing(bind(config.host, 0)))
            stack.callback(_unlink, config.host.removeprefix(UNIX))
            yield DoorPorts(config, listener)
            return
        ports = {"port": _reserve(config.host, config.port, "port", stack)}
        if config.grpc_port is not None:
            ports["grpc_port"] = _reserve(config.host, config.grpc_port, "gRPC port", stack)
        yield DoorPorts(config.model_copy(update=ports), None)


class DoorProcesses:
    """`config.doors` processes in front of the engines of `server`; used in their event loop."""

    def __init__(self, ports: DoorPorts, server: Server) -> None:
        """Start nothing yet; the server's metrics say how the doors are."""
        self._config = ports.config
        self._listener = ports.listener
        self._server = dataclasses.replace(server, door_load=self.load)
        self._rates = make_rates_memory()
        self._peers: dict[int, DoorPeer] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._is_ending = False

    def load(self) -> tuple[float, int]:
        """Return the longest lag of any door's loop, in seconds, and the bytes in flight of all."""
        peers = self._peers.values()
        lag_s = max((peer.lag_s for peer in peers), default=0.0)
        return lag_s, sum(peer.inflight_bytes for peer in peers)

    async def start(self) -> None:
        """Start all doors; return when they listen. Raises ServeConfigError."""
        first = [asyncio.get_running_loop().create_future() for _ in range(self._config.doors)]
        self._keeping = [
            asyncio.ensure_future(self._keep(index, ready)) for index, ready in enumerate(first)
        ]
        try:
            async with asyncio.timeout(_STARTING_S):
                await asyncio.gather(*first)
        except TimeoutError:
            text = f"a door did not come up within {_STARTING_S:g} s; the log has its words"
            raise ServeConfigError(text) from None
        self._watch = asyncio.ensure_future(self._tell_changes())

    async def stop(self, timeout_s: float) -> None:
        """Have all doors answer what is open and end; those that do not in time are killed."""
        self._is_ending = True
        for peer in self._peers.values():
            peer.stop(timeout_s)
        if self._watch is not None:
            self._watch.cancel()
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=timeout_s + _KILLED_AFTER_S)
            for task in late:
                task.cancel()  # kills its process
            await asyncio.gather(*self._keeping, return_exceptions=True)
        os.close(self._rates)

    async def tell(self) -> None:
        """Tell every door how the server is; return when they have heard."""
        await asyncio.gather(*(peer.tell() for peer in tuple(self._peers.values())))

    async def _tell_changes(self) -> None:
        known = pack_state(self._server)
        while True:
            await asyncio.sleep(_STATE_POLL_S)
            state = pack_state(self._server)
            if state != known:
                known = state
                await self.tell()

    async def _keep(self, index: int, ready: asyncio.Future[None]) -> None:
        """Keep one door running, and say when it listens for the first time."""
        loop, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        while not self._is_ending:
            began_s = loop.time()
            code = await self._run(index, ready)
            if self._is_ending:
                return
            if not ready.done():
                text = f"a door ended with code {code} before it listened; the log has its words"
                ready.set_exception(ServeConfigError(text))
                return
            logger.error("door %d ended with code %s; it is started again", index, code)
            if loop.time() - began_s > _LONG_LIFE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run(self, index: int, ready: asyncio.Future[None]) -> int:
        """Run a door's process to its end; return its code."""
        ours, theirs = socket.socketpair()
        memory = make_memory(self._ring_bytes())
        peer = DoorPeer(
            self._server,
            PayloadRing(memory),
            on_change=self.tell,
            on_lost=functools.partial(self._peers.pop, index, None),
        )
        inherited = [theirs.fileno(), memory, self._rates]
        inherited += [] if self._listener is None else [self._listener.fileno()]
        arguments = [*map(str, inherited), *(["-1"] if self._listener is None else [])]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "serve.hosts.doors.door_process",
                *arguments,
                pass_fds=inherited,
            )
        finally:
            theirs.close()
            os.close(memory)
        try:
            await peer.connect(ours)
            self._peers[index] = peer
            peer.begin(self._settings(index), [pack_model(model) for model in self._server.models])
            peer.ready.add_done_callback(lambda _: ready.done() or ready.set_result(None))
            return await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise

    def _settings(self, index: int) -> dict[str, Any]:
        """Return the settings of one door: what is of the whole server, in equal parts."""
        config, count = self._config, self._config.doors
        parts: dict[str, Any] = {
            "doors": 1,
            "max_inflight_bytes": config.max_inflight_bytes // count,
            "log_lines_per_s": config.log_lines_per_s / count,
        }
        if config.max_connections is not None:
            more = index < config.max_connections % count
            parts["max_connections"] = config.max_connections // count + more
        own = config.model_copy(update=parts)
        return own.model_dump(mode="json", exclude_none=True)

    def _ring_bytes(self) -> int:
        largest = self._config.max_body_bytes
        for model in self._server.models:
            sample = model.spec.sample.zeros(1).nbytes
            largest = max(largest, model.spec.max_batch_size * sample)
        pages = math.ceil(_RING_PAYLOADS * largest / 4096)
        return max(_LEAST_RING_BYTES, pages * 4096)


def _reserve(host: str, port: int, what: str, stack: contextlib.ExitStack) -> int:
    """Bind a port that nobody else has, to be shared by doors; return its number."""
    with contextlib.closing(bind(host, port, setting=what)) as sock:
        number = sock.getsockname()[1]
    stack.enter_context(contextlib.closing(bind(host, number, is_shared=True, setting=what)))
    return number


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
