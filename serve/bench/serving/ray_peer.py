"""The peer of the serving benchmark: Ray Serve's own batching around one extracted subnet.

What a user would pick instead: `@serve.batch`, FIFO, one batch size, one wait. It is given what it
can be given: our executor, a device thread of its own, so that requests are parsed while a
batch runs, our parser and binary tensors, a listener in the replica like ours beside Ray's proxy,
no limit on ongoing requests, and Ray's request timeout set to the SLO where that helps it (Ray then
cancels what is late, and `@serve.batch` leaves it out). Subnet and tuning are switched between
runs without a restart.
"""

# NOTE: no `from __future__ import annotations` here: Ray reads signatures.

import asyncio
import concurrent.futures
import contextlib
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ray import serve as ray_serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.bench.serving.static_subnet import StaticSubnet
from serve.doors import rest_messages
from serve.engine.reply import Reply
from serve.hosts.tuned_process import tuned_process
from serve.hosts.uvicorn_listener import listening
from serve.models.limits import RefusedError
from serve.models.request import ModelSpec
from serve.proto.names import BINARY_HEADER
from slackfit.query import Outcome
from subnetact import load_executor
from supernet import load_checkpoint

PEER_APP = "fixed"
PEER_PREFIX = "/fixed"
_UNLIMITED = 100_000


class Tuning(NamedTuple):
    """How the peer serves from now on; `timeout_s` None: nothing is ever cancelled."""

    subnet_id: str
    is_eager: bool
    max_batch_size: int
    wait_s: float
    timeout_s: float | None


class _Ran(NamedTuple):
    logits: np.ndarray  # (num_classes,)
    batch_size: int
    execution_s: float


@ray_serve.deployment(name=PEER_APP, max_ongoing_requests=_UNLIMITED)
@ray_serve.ingress()
class FixedPeer:
    """One replica: several subnets loaded (None: all), one of them in use."""

    async def __init__(
        self,
        checkpoint: str,
        threads: int,
        max_batch_size: int,
        port: int,
        subnet_ids: list[str] | None = None,
    ) -> None:
        loaded = await asyncio.to_thread(load_checkpoint, checkpoint)
        self._executor = load_executor(
            loaded, threads=threads, max_batch_size=max_batch_size, subnet_ids=subnet_ids
        )
        self._make_eager = partial(StaticSubnet, loaded, threads=threads)
        self._eager: dict[str, StaticSubnet] = {}
        self._accuracy = {s.subnet_id: s.accuracy for s in loaded.forms}
        self._device = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="device")
        self._tuning = Tuning(loaded.subnet_ids[0], False, 1, 0.0, None)
        self._spec = ModelSpec(
            loaded.name, loaded.sample, loaded.num_classes, max_batch_size, loaded.subnet_ids
        )
        await asyncio.get_running_loop().run_in_executor(self._device, self._executor.warm_up)
        self._app = Starlette(
            routes=[
                Route(f"/v2/models/{loaded.name}/infer", self._infer, methods=["POST"]),
                Route(f"/v2/models/{loaded.name}", self._model),
                Route("/v2", self._server),
            ]
        )
        self._resources = contextlib.AsyncExitStack()
        await self._resources.enter_async_context(
            listening(self._app, "127.0.0.1", port, drain_left_s=lambda: 1.0, max_connections=100)
        )
        self._resources.enter_context(tuned_process())

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._app

    async def tune(self, tuning: tuple[Any, ...]) -> None:
        """Serve like this from now on; what waits is finished first."""
        wanted = Tuning(*tuning)
        if wanted.is_eager and wanted.subnet_id not in self._eager:
            self._eager[wanted.subnet_id] = await asyncio.to_thread(
                self._make_eager, wanted.subnet_id
            )
        self._tuning = wanted
        batching: Any = self._run  # Ray hangs the setters on the method
        batching.set_max_batch_size(self._tuning.max_batch_size)
        batching.set_batch_wait_timeout_s(self._tuning.wait_s)

    @ray_serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)
    async def _run(self, samples: list[np.ndarray]) -> list[_Ran]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._device, self._execute, samples)

    def _execute(self, samples: list[np.ndarray]) -> list[_Ran]:
        subnet_id, is_eager, *_ = self._tuning
        start_s = time.monotonic()
        inputs = np.concatenate(samples)  # (B, C, H, W)
        if is_eager:
            logits = self._eager[subnet_id].run(inputs)
        else:
            logits = self._executor.run(subnet_id, inputs)
        execution_s = time.monotonic() - start_s
        return [_Ran(row, len(samples), execution_s) for row in logits]

    async def _infer(self, request: Request) -> Response:
        arrival_s = time.monotonic()
        tuning = self._tuning
        run: Any = self._run  # one sample in, one result out: @serve.batch makes the lists
        try:
            body = await request.body()
            form = rest_messages.BodyForm(binary_header=request.headers.get(BINARY_HEADER))
            parsed = rest_messages.parse_infer(body, form, self._spec, max_json_bytes=len(body))
        except RefusedError as error:
            return JSONResponse({"error": error.message}, error.http_status)
        try:
            async with asyncio.timeout(tuning.timeout_s):
                ran = await run(parsed.samples)
        except TimeoutError:
            return JSONResponse({"error": "request timed out"}, 408)  # as Ray's proxy answers
        reply = self._reply(tuning, ran, arrival_s)
        body, json_length = rest_messages.build_response(parsed, self._spec, PEER_APP, [reply])
        headers = {} if json_length is None else {BINARY_HEADER: str(json_length)}
        return Response(body, headers=headers, media_type="application/octet-stream")

    def _reply(self, tuning: Tuning, ran: _Ran, arrival_s: float) -> Reply:
        now_s = time.monotonic()
        outcome = Outcome(
            0,
            "on_time",  # it knows no deadline: the client judges
            "",
            arrival_s,
            now_s,
            now_s - ran.execution_s,
            now_s,
            tuning.subnet_id,
            self._accuracy[tuning.subnet_id],
            ran.batch_size,
        )
        return Reply(outcome, ran.logits, ran.execution_s)

    async def _model(self, _: Request) -> Response:
        return JSONResponse(rest_messages.model_metadata(self._spec, PEER_APP))

    async def _server(self, _: Request) -> Response:
        return JSONResponse(rest_messages.server_metadata([self._spec.name]))


@ray_serve.deployment(name="no_op", max_ongoing_requests=_UNLIMITED)
class NoOp:
    """Answers nothing at once: what Ray Serve itself costs."""

    async def __call__(self, _: Request) -> bytes:
        return b""
