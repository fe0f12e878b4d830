"""What a user would write instead: uvicorn around one compiled network, first in, first out.

`python -m serve.bench.static.lean_server CHECKPOINT SUBNET [DROP_MS]` answers binary requests
of the Open Inference Protocol on one subnet's session, whatever is queued in batches of up to 16,
with no deadlines; with DROP_MS what has waited longer is answered 503. Parsing is the least that
works.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.proto.names import BINARY_HEADER
from subnetact import load_executor
from subnetact.executor import Executor
from supernet import load_checkpoint

_MAX_BATCH = 16


class _QueuedSample(NamedTuple):
    sample: np.ndarray
    since_s: float
    answer: asyncio.Future[np.ndarray | None]


class LeanServer:
    """One queue, one thread for the device, one network."""

    def __init__(
        self, executor: Executor, subnet_id: str, name: str, accuracy: float, drop_s: float | None
    ) -> None:
        self._executor, self._subnet_id = executor, subnet_id
        self._drop_s = drop_s
        self._queue: deque[_QueuedSample] = deque()
        self._device = ThreadPoolExecutor(1)
        self._is_busy = False
        about = {"subnet": subnet_id, "accuracy": accuracy, "policy": "lean", "status": "on_time"}
        tensor = {"name": "input", "datatype": "UINT8", "shape": [-1, *executor.sample.shape]}
        self._model = {"name": name, "inputs": [tensor], "parameters": about}
        self._about = about
        self.app = Starlette(
            routes=[
                Route("/v2", self._server),
                Route(f"/v2/models/{name}", self._describe),
                Route(f"/v2/models/{name}/infer", self._infer, methods=["POST"]),
            ]
        )

    async def _server(self, _: Request) -> Response:
        models = [self._model["name"]]
        return JSONResponse(
            {"name": "supernet", "extensions": ["binary_tensor_data"], "models": models}
        )

    async def _describe(self, _: Request) -> Response:
        return JSONResponse(self._model)

    async def _infer(self, request: Request) -> Response:
        body = await request.body()
        pixels = np.frombuffer(body, np.uint8, offset=int(request.headers[BINARY_HEADER]))
        answer = asyncio.get_running_loop().create_future()
        sample = pixels.reshape(1, *self._executor.sample.shape)
        self._queue.append(_QueuedSample(sample, time.monotonic(), answer))
        if not self._is_busy:
            self._next()
        logits = await answer
        if logits is None:
            return JSONResponse({"error": "waited too long"}, 503)
        data = logits.astype("<f4").tobytes()
        output = {
            "name": "logits", "datatype": "FP32", "shape": [1, logits.size],
            "parameters": {"binary_data_size": len(data)},
        }  # fmt: skip
        head = json.dumps({"outputs": [output], "parameters": self._about}).encode()
        return Response(head + data, headers={BINARY_HEADER: str(len(head))})

    def _next(self) -> None:
        """Run what waits, up to a batch, on the device's thread."""
        now_s = time.monotonic()
        while self._drop_s is not None and self._queue:
            if now_s - self._queue[0].since_s <= self._drop_s:
                break
            _settle(self._queue.popleft().answer, None)
        batch = [self._queue.popleft() for _ in range(min(_MAX_BATCH, len(self._queue)))]
        self._is_busy = bool(batch)
        if batch:
            inputs = np.concatenate([waiting.sample for waiting in batch])
            run = self._device.submit(self._executor.run, self._subnet_id, inputs)
            loop = asyncio.get_running_loop()
            run.add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._finish, batch, done.result())
            )

    def _finish(self, batch: list[_QueuedSample], logits: np.ndarray) -> None:
        for waiting, row in zip(batch, logits, strict=True):
            _settle(waiting.answer, row)
        self._next()


def _settle(answer: asyncio.Future[np.ndarray | None], value: np.ndarray | None) -> None:
    if not answer.done():  # else the client has gone
        answer.set_result(value)


def main() -> None:
    """Serve until a signal; prints where, once it is warm."""
    folder, subnet_id, *drop_ms = sys.argv[1:]
    checkpoint = load_checkpoint(folder)
    executor = load_executor(checkpoint, subnet_ids=[subnet_id], max_batch_size=_MAX_BATCH)
    executor.warm_up()
    server = LeanServer(
        executor,
        subnet_id,
        checkpoint.name or "supernet",
        checkpoint.subnet(subnet_id).accuracy,
        float(drop_ms[0]) * 1e-3 if drop_ms else None,
    )
    config = uvicorn.Config(server.app, log_level="error", access_log=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"ready: http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
