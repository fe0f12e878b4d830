"""Part `doors`: what a query costs beyond its execution, through every way in, on an idle machine.

One request at a time, one sample each, the smallest subnet. Overhead is the client's latency less
the execution time that the answer names. Calls that do nothing stand beside them, of our doors and
of a Ray Serve deployment; their whole latency counts. All are up at once and asked in turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.cluster import running
from serve.bench.serving.load import samples
from serve.bench.serving.server_process import server_process
from serve.bench.serving.setting import Setting
from serve.client.dial import dial
from serve.client.http_wire import HttpWire
from serve.client.rpc_channel import async_rpc_channel, call_of
from serve.proto import open_inference_pb2 as pb
from traces.open_loop.target import ReplayRequest, Target

_BLOCKS = 8
_PAUSE_S = 0.003  # so that every request meets an idle server
_WARM_UP = 20
_SLO_S = 1.0
_POLICY = "fixed:smallest"

Ask = Callable[[], Awaitable[float]]
"""Asks once and returns the seconds beyond execution."""


class MeasuredDoor(NamedTuple):
    """A way in and what is asked of it (p50 in seconds, None: nothing)."""

    text: str
    bar_s: float | None = None


DOORS = {
    "engine": MeasuredDoor("the engine in process: no door at all", 0.3e-3),
    "no_ray_http": MeasuredDoor("HTTP without Ray"),
    "no_ray_grpc": MeasuredDoor("gRPC without Ray", 1.5e-3),
    "no_ray_http_live": MeasuredDoor("whether the server lives, HTTP without Ray"),
    "no_ray_grpc_live": MeasuredDoor("whether the server lives, gRPC without Ray"),
    "ray_direct_http": MeasuredDoor("HTTP on Ray, the replica's own listener", 2.5e-3),
    "ray_direct_grpc": MeasuredDoor("gRPC on Ray, the replica's own listener", 2.5e-3),
    "ray_proxy_http": MeasuredDoor("HTTP on Ray through Ray's proxy"),
    "ray_no_op_http": MeasuredDoor("a Ray Serve deployment that does nothing, through Ray's proxy"),
}
_NO_OPS = ("no_ray_http_live", "no_ray_grpc_live", "ray_no_op_http")


class DoorsBench:
    """All doors, `count` requests each, in interleaved blocks."""

    def __init__(self, setting: Setting, journal: Journal, *, count: int, tell: Tell) -> None:
        self._setting = setting
        self._journal = journal
        self._count = count
        self._tell = tell

    def run(self) -> None:
        """Measure what the journal lacks."""
        missing = [name for name in DOORS if f"doors/{name}" not in self._journal]
        if not missing:
            return
        config = self._setting.config(policy=_POLICY, grpc_port=0)
        with (
            server_process(config) as server,
            running(config, self._setting.profile.max_batch_size) as cluster,
        ):
            urls = {
                "no_ray_http": server.url,
                "no_ray_grpc": server.rpc_url,
                "no_ray_http_live": f"{server.url}/v2/health/live",
                "no_ray_grpc_live": server.rpc_url,
                "ray_direct_http": cluster.url,
                "ray_direct_grpc": cluster.rpc_url,
                "ray_proxy_http": cluster.proxy_url,
                "ray_no_op_http": cluster.no_op_url,
            }
            found = asyncio.run(self._measure(urls))
        for name, overheads_s in found.items():
            self._journal.once(f"doors/{name}", lambda v=overheads_s: v)
            self._tell(f"doors/{name}: p50 {np.median(overheads_s) * 1e3:.2f} ms")

    def rows(self) -> list[Row]:
        """Return p50 and p99 of each door, in milliseconds."""
        rows: list[Row] = []
        for name, door in DOORS.items():
            if f"doors/{name}" not in self._journal:
                continue
            overheads_ms = np.array(self._journal.get(f"doors/{name}")) * 1e3
            bar = "" if door.bar_s is None else f"; <= {door.bar_s * 1e3:g} asked for"
            what = "whole latency" if name in _NO_OPS else "latency less execution"
            text = f"{door.text}; {what}, {len(overheads_ms)} requests, one at a time, idle"
            for quantile, note in ((50, bar), (99, "")):
                value = float(np.percentile(overheads_ms, quantile))
                figure = f"serving/doors/{name}/p{quantile}"
                rows.append(row(figure, value, "ms", text + note, digits=4))
        return rows

    async def _measure(self, urls: dict[str, str]) -> dict[str, list[float]]:
        """Ask all doors in turns; return every overhead."""
        async with contextlib.AsyncExitStack() as stack:
            doors: dict[str, Ask] = {
                "engine": await stack.enter_async_context(_engine(self._setting))
            }
            for name, url in urls.items():
                doors[name] = await stack.enter_async_context(self._door(name, url))
            found: dict[str, list[float]] = {name: [] for name in doors}
            for ask in doors.values():
                for _ in range(_WARM_UP):
                    await ask()
            names = list(doors)
            for block in range(_BLOCKS):
                first = block % len(names)
                for name in names[first:] + names[:first]:
                    for _ in range(self._count // _BLOCKS):
                        await asyncio.sleep(_PAUSE_S)
                        found[name].append(await doors[name]())
            return found

    @contextlib.asynccontextmanager
    async def _door(self, name: str, url: str):
        if name == "no_ray_grpc_live":
            async with async_rpc_channel(url) as channel:
                live = call_of(channel, "ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse)
                yield _whole(lambda: live(pb.ServerLiveRequest()))
            return
        if name in _NO_OPS:
            wire = HttpWire()
            try:
                yield _whole(lambda: wire.send("GET", url, headers={}, content=b""))
            finally:
                await wire.close()
            return
        target, model = await dial(url, self._setting.load.model)
        try:
            yield _remote(target, samples(self._setting.load.data, model)[0])
        finally:
            await target.close()


def _remote(target: Target, sample: np.ndarray) -> Ask:
    async def send_one() -> float:
        start_s = time.perf_counter()
        reply = await target.infer(ReplayRequest(query_id=0, payload=sample, slo_s=_SLO_S))
        took_s = time.perf_counter() - start_s
        if reply.status != "ok":
            raise RuntimeError(f"an idle server refused: {reply.status} {reply.reason}")
        return took_s - reply.execution_s

    return send_one


def _whole(call: Callable[[], Awaitable[Any]]) -> Ask:
    async def send_one() -> float:
        start_s = time.perf_counter()
        await call()
        return time.perf_counter() - start_s

    return send_one


@contextlib.asynccontextmanager
async def _engine(setting: Setting):
    """Yield how to ask an engine of this process."""
    from serve.engine.reply import RequestOptions
    from serve.hosts.assemble import build_model
    from serve.hosts.load_device import load
    from serve.hosts.tuned_process import tuned_process
    from serve.observe.metrics import Metrics

    config = setting.config(policy=_POLICY)
    with contextlib.ExitStack() as resources:
        loaded = await asyncio.to_thread(load, config)
        resources.callback(loaded.executor.close)
        engine = build_model(config, loaded, Metrics(), resources).engine
        await engine.start()
        resources.enter_context(tuned_process())
        sample = loaded.executor.sample.zeros(1)

        async def send_one() -> float:
            arrival_s = engine.clock()
            (reply,) = await engine.infer(
                sample, arrival_s=arrival_s, options=RequestOptions(arrival_s + _SLO_S)
            )
            return engine.clock() - arrival_s - reply.execution_s

        try:
            yield send_one
        finally:
            await engine.stop()
