"""The client for people: `Client` waits, `AsyncClient` is awaited; HTTP and gRPC by the URL.

```python
with Client("http://127.0.0.1:8000", slo_ms=50) as client:  # or grpc://127.0.0.1:8001
    result = client.infer(images)                           # uint8 (B, C, H, W), or PNG/JPEG bytes
    print(result.labels, result.subnet_id, result.accuracy, result.slack_s)
```

Requests are spread over a server's replicas, by what their answers tell (`replicas.py`). What a
server did not answer (it died, is draining or not ready) is retried, at another replica where there
is one, while slack is left: within `slo_ms` or `timeout_s` of the call, else for a second
(`retry.py`). What was refused for load is not, and raises at once, with the predicted earliest
finish. A query without an output raises an `InferError` (`errors.py`). For open-loop load, which
counts instead of raising, see `rest_target.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from serve.client.addresses import is_rpc
from serve.client.errors import InferError, UnavailableError
from serve.client.infer_call import (
    InferCall,
    InferResult,
    Inputs,
    TimeLimits,
    make_infer_call,
    make_time_limits,
)
from serve.client.info import ModelInfo, SubnetStatistics, read_info, read_statistics
from serve.client.replicas import Replicas, split_urls
from serve.client.rest_answers import ClientError
from serve.client.rest_transport import AsyncRestTransport, RestTransport
from serve.client.retry import Attempts, RetryBucket
from serve.client.spread_transport import AsyncSpreadTransport, SpreadTransport

__all__ = ["AsyncClient", "Client", "ClientError", "InferError", "InferResult", "ModelInfo"]

_GET_TIMEOUT_S = 30.0


class _PendingCall:
    """One call of `infer`: its request, its attempts, and what to do with the end of each."""

    def __init__(self, infer_call: InferCall, times: TimeLimits, settings: _ClientOptions) -> None:
        self.infer_call = infer_call
        self._replicas = settings.replicas
        self._times = times
        self._attempts = Attempts(settings.bucket, time.monotonic, times.slack_s)

    def times(self) -> TimeLimits:
        """Return what is left for the next attempt."""
        left_s = self._attempts.left_s
        return TimeLimits(
            *(None if given_s is None else left_s(given_s) for given_s in self._times)
        )

    def next_wait_s(self, end: InferResult | InferError) -> float | None:
        """Return how long to wait before a retry; None when this end stays."""
        if isinstance(end, UnavailableError):
            return self._attempts.next_wait_s(at_once=self._replicas.has_other())
        self._attempts.answered()
        return None

    def finish(self, end: InferResult | InferError) -> InferResult:
        """Return the result, or raise the error, with what the attempts came to."""
        num_retries = self._attempts.num_retries
        if isinstance(end, InferError):
            end.num_retries = num_retries
            raise end
        latency_s = self._attempts.spent_s
        return dataclasses.replace(end, num_retries=num_retries, latency_s=latency_s)


class _ClientOptions:
    """What both clients are made with."""

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None,
        slo_ms: float | None,
        timeout_s: float | None,
        *,
        spread: bool,
    ) -> None:
        make_time_limits(slo_ms, timeout_s)
        self.replicas = Replicas(split_urls(url), follows=spread)
        self.is_rpc = is_rpc(self.replicas.scheme)
        self.url = self.replicas.given[0]
        self.model = model
        self.slo_ms = slo_ms
        self.timeout_s = timeout_s
        self.bucket = RetryBucket()

    def call(
        self, infer_call: InferCall, slo_ms: float | None, timeout_s: float | None
    ) -> _PendingCall:
        times = make_time_limits(
            self.slo_ms if slo_ms is None else slo_ms,
            self.timeout_s if timeout_s is None else timeout_s,
        )
        return _PendingCall(infer_call, times, self)

    def first_model(self, server: dict[str, Any]) -> str:
        """Choose the first model that a server lists. Raises ClientError."""
        models = server.get("models")
        if not isinstance(models, list) or not models:
            text = "does not list its models (gRPC has no list): give model="
            raise ClientError(f"{self.url} {text}")
        self.model = str(models[0])
        return self.model


class Client:
    """A client that waits for its answers; threads may share one.

    `model` None asks the server for its first (HTTP only). `slo_ms` is the deadline of every call
    unless it gives another (None: the deployment's), soft: a late answer still comes, marked
    `is_late`. After `timeout_s` nobody wants it: the server drops the query and says so (None: the
    client waits for half a minute or twice the SLO, and the server is not told).
    `is_json` sends tensors as JSON instead of bytes (a hundred times the work for the server).
    `token` travels as a bearer token.

    `url` may be several, a sequence or a text with commas: servers that serve the same. Requests
    are spread over them, and (unless `spread` is false) over the replicas that the server names.

    Raises ValueError for times that are not above 0, ClientError for a URL of something else.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
        *,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        is_json: bool = False,
        token: str | None = None,
        spread: bool = True,
    ) -> None:
        self._settings = _ClientOptions(url, model, slo_ms, timeout_s, spread=spread)
        if self._settings.is_rpc:
            from serve.client.rpc_transport import RpcTransport

            make = partial(RpcTransport, token=token)
        else:
            others = self._settings.replicas.has_other
            make = partial(RestTransport, is_json=is_json, token=token, has_other=others)
        self._transport = SpreadTransport(self._settings.replicas, make)

    def infer(
        self,
        inputs: Inputs,
        *,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        priority: int = 0,
        min_accuracy: float | None = None,
        subnet: str | None = None,
    ) -> InferResult:
        """Serve one request: images or token ids, see `Inputs`.

        `priority` goes from 1, the highest, to 10; 0, the default, is the lowest. Under overload
        those of a lower one are given up first. `min_accuracy` is a floor on the subnet's profiled
        accuracy, a fraction; `subnet` pins one.

        Raises InferError when there is no output, ValueError for inputs that no model takes.
        """
        infer_call = make_infer_call(
            self._model(), inputs, priority=priority, min_accuracy=min_accuracy, subnet=subnet
        )
        call = self._settings.call(infer_call, slo_ms, timeout_s)
        while True:
            end = self._transport.infer(call.infer_call, call.times())
            wait_s = call.next_wait_s(end)
            if wait_s is None:
                return call.finish(end)
            time.sleep(wait_s)

    @property
    def num_retries(self) -> int:
        """Retries of this client so far."""
        return self._settings.bucket.num_retries

    def is_ready(self, model: str | None = None) -> bool:
        """Return whether the server, or one model of it, takes queries; false when it is gone.

        Raises UnknownModelError.
        """
        try:
            answer = self._get("ready" if model is None else "model_ready", model)
        except UnavailableError:
            return False
        return answer.get("ready") is True

    def model_info(self, model: str | None = None) -> ModelInfo:
        """Return the metadata of a model (None: this client's). Raises InferError."""
        return read_info(self._get("model", model or self._model()))

    def statistics(self, model: str | None = None) -> list[SubnetStatistics]:
        """Return a row for each subnet of a model (None: this client's). Raises InferError."""
        return read_statistics(self._get("model_statistics", model or self._model()))

    def server_info(self) -> dict[str, Any]:
        """Return the server's metadata: name, version, extensions. Raises InferError."""
        return self._get("server", None)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _model(self) -> str:
        return self._settings.model or self._settings.first_model(self.server_info())

    def _get(self, kind: str, model: str | None) -> dict[str, Any]:
        return self._transport.get(kind, model, _GET_TIMEOUT_S)


class AsyncClient:
    """`Client` for an event loop: every method is awaited, any number of calls at once."""

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
        *,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        is_json: bool = False,
        token: str | None = None,
        spread: bool = True,
    ) -> None:
        self._settings = _ClientOptions(url, model, slo_ms, timeout_s, spread=spread)
        if self._settings.is_rpc:
            from serve.client.rpc_transport import AsyncRpcTransport

            make = partial(AsyncRpcTransport, token=token)
        else:
            others = self._settings.replicas.has_other
            make = partial(AsyncRestTransport, is_json=is_json, token=token, has_other=others)
        self._transport = AsyncSpreadTransport(self._settings.replicas, make)

    async def infer(
        self,
        inputs: Inputs,
        *,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        priority: int = 0,
        min_accuracy: float | None = None,
        subnet: str | None = None,
    ) -> InferResult:
        """Serve one request; see `Client.infer`."""
        infer_call = make_infer_call(
            await self._model(), inputs, priority=priority, min_accuracy=min_accuracy, subnet=subnet
        )
        call = self._settings.call(infer_call, slo_ms, timeout_s)
        while True:
            end = await self._transport.infer(call.infer_call, call.times())
            wait_s = call.next_wait_s(end)
            if wait_s is None:
                return call.finish(end)
            await asyncio.sleep(wait_s)

    @property
    def num_retries(self) -> int:
        """Retries of this client so far."""
        return self._settings.bucket.num_retries

    async def is_ready(self, model: str | None = None) -> bool:
        """Return whether the server, or one model of it, takes queries; false when it is gone.

        Raises UnknownModelError.
        """
        try:
            answer = await self._get("ready" if model is None else "model_ready", model)
        except UnavailableError:
            return False
        return answer.get("ready") is True

    async def model_info(self, model: str | None = None) -> ModelInfo:
        """Return the metadata of a model (None: this client's). Raises InferError."""
        return read_info(await self._get("model", model or await self._model()))

    async def statistics(self, model: str | None = None) -> list[SubnetStatistics]:
        """Return a row for each subnet of a model (None: this client's). Raises InferError."""
        return read_statistics(await self._get("model_statistics", model or await self._model()))

    async def server_info(self) -> dict[str, Any]:
        """Return the server's metadata: name, version, extensions. Raises InferError."""
        return await self._get("server", None)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _model(self) -> str:
        return self._settings.model or self._settings.first_model(await self.server_info())

    async def _get(self, kind: str, model: str | None) -> dict[str, Any]:
        return await self._transport.get(kind, model, _GET_TIMEOUT_S)
