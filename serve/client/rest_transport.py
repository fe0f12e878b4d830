"""Our requests over HTTP, JSON or binary, blocking (httpx) or not (`http_wire.py`).

The two transports differ in who waits; what they send and how they read is the same code. They
return how a query ended, an `InferResult` or an `InferError`, and leave raising to the client.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import numpy as np

from serve.client.addresses import request_base, socket_path
from serve.client.environment import trusting_context
from serve.client.errors import (
    InferError,
    connection_lost,
    refusal_error,
    timed_out,
    unreadable_answer,
)
from serve.client.http_wire import HttpWire, Response, WireError
from serve.client.infer_call import InferCall, InferResult, TimeLimits, make_infer_result
from serve.client.rest_answers import UnreadableError, parse_refusal, read_outputs
from serve.proto.names import (
    BINARY_HEADER,
    BYTES_LENGTH,
    IMAGE_TYPE,
    INPUT_NAME,
    SLO_HEADER,
    TIMEOUT_HEADER,
)

_PATHS = {
    "server": "",
    "live": "/health/live",
    "ready": "/health/ready",
    "model": "/models/{model}",
    "model_ready": "/models/{model}/ready",
    "statistics": "/models/stats",
    "model_statistics": "/models/{model}/stats",
}


class _Post(NamedTuple):
    url: str
    headers: dict[str, str]
    content: bytes


def time_headers(slo_s: float | None, timeout_s: float | None) -> dict[str, str]:
    """Return the headers that carry what is left of a query's times."""
    headers: dict[str, str] = {}
    if slo_s is not None:
        headers[SLO_HEADER] = f"{slo_s * 1e3:.6g}"
    if timeout_s is not None:
        headers[TIMEOUT_HEADER] = f"{timeout_s:.6g}"
    return headers


class _Form:
    """How requests to one server look, and how its answers read."""

    def __init__(self, url: str, *, is_json: bool, token: str | None) -> None:
        self._server_url = f"{request_base(url)}/v2"
        self._is_json = is_json
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def post(self, infer_call: InferCall, times: TimeLimits) -> _Post:
        """Return the HTTP request for an inference."""
        tensor, tail = _tensor(infer_call.samples, is_json=self._is_json)
        parameters = dict(infer_call.parameters)
        if not self._is_json:
            parameters["binary_data_output"] = True
        head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        headers = self._headers | time_headers(*times)
        headers["content-type"] = "application/json"
        if not self._is_json:
            headers["content-type"] = "application/octet-stream"
            headers[BINARY_HEADER] = str(len(head))
        return _Post(f"{self._model_url(infer_call.model)}/infer", headers, head + tail)

    def get(self, kind: str, model: str | None) -> _Post:
        """Return the HTTP request for something that can be looked at."""
        path = _PATHS[kind].format(model=quote(model or "", safe=""))
        return _Post(f"{self._server_url}{path}", self._headers, b"")

    def read(self, infer_call: InferCall, answer: Response) -> InferResult | InferError:
        """Return how the query ended."""
        if answer.status != 200:
            return _refusal(answer)
        try:
            output, parameters = read_outputs(answer.body, answer.headers.get(BINARY_HEADER))
            return make_infer_result(output, parameters, len(infer_call.samples))
        except (UnreadableError, ValueError) as error:
            return unreadable_answer(str(error))

    def read_object(self, answer: Response) -> dict[str, Any]:
        """Return the JSON object of an answer. Raises InferError."""
        if answer.status != 200:
            raise _refusal(answer)
        try:
            fields = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise unreadable_answer("no JSON; is this a model server?") from None
        if not isinstance(fields, Mapping):
            raise unreadable_answer("no JSON object; is this a model server?")
        return dict(fields)

    def _model_url(self, model: str) -> str:
        return f"{self._server_url}/models/{quote(model, safe='')}"


def _verified(url: str) -> ssl.SSLContext | bool:
    return trusting_context() if url.startswith("https://") else True


def socket_transport(url: str) -> httpx.HTTPTransport | None:
    """Return what an httpx client reaches the UNIX socket of an address by; None for a host."""
    path = socket_path(url)
    return None if path is None else httpx.HTTPTransport(uds=path)


def _alone() -> bool:
    return False


class RestTransport:
    """Sends and waits; threads may share one."""

    def __init__(
        self, url: str, *, is_json: bool, token: str | None, has_other: Callable[[], bool] = _alone
    ) -> None:
        """`has_other`: whether another replica could be asked when this one can't be reached."""
        self._has_other = has_other
        self._form = _Form(url, is_json=is_json, token=token)
        self._url = url
        self._client = httpx.Client(
            trust_env=False, verify=_verified(url), transport=socket_transport(url)
        )

    def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        """Send one request and return how it ended."""
        post = self._form.post(infer_call, times)
        try:
            return self._form.read(
                infer_call, self._send("POST", post, times.limit_s, self._connect_s(times))
            )
        except InferError as error:
            return error

    def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        """Return what the server says of itself or of a model. Raises InferError."""
        return self._form.read_object(self._send("GET", self._form.get(kind, model), timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _connect_s(self, times: TimeLimits) -> float | None:
        return times.connect_s if self._has_other() else None

    def _send(
        self, method: str, post: _Post, timeout_s: float, connect_s: float | None = None
    ) -> Response:
        timeout = httpx.Timeout(timeout_s, connect=timeout_s if connect_s is None else connect_s)
        try:
            answer = self._client.request(
                method, post.url, headers=post.headers, content=post.content, timeout=timeout
            )
        except (httpx.ReadTimeout, httpx.PoolTimeout):
            raise timed_out(timeout_s) from None
        except httpx.HTTPError as error:
            raise connection_lost(f"{self._url}: {type(error).__name__}: {error}") from error
        if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            answer.extensions["network_stream"].close()  # another server may answer the retry
        return Response(answer.status_code, answer.headers, answer.content)


class AsyncRestTransport:
    """Sends many at once, in the event loop of the first request."""

    def __init__(
        self, url: str, *, is_json: bool, token: str | None, has_other: Callable[[], bool] = _alone
    ) -> None:
        """See `RestTransport`."""
        self._has_other = has_other
        self._form = _Form(url, is_json=is_json, token=token)
        self._url = url
        self._wire = HttpWire(socket_path(url))

    async def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        """Send one request and return how it ended."""
        post = self._form.post(infer_call, times)
        try:
            answer = await self._send("POST", post, times.limit_s, self._connect_s(times))
            return self._form.read(infer_call, answer)
        except InferError as error:
            return error

    async def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        """Return what the server says of itself or of a model. Raises InferError."""
        answer = await self._send("GET", self._form.get(kind, model), timeout_s)
        return self._form.read_object(answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    def _connect_s(self, times: TimeLimits) -> float | None:
        return times.connect_s if self._has_other() else None

    async def _send(
        self, method: str, post: _Post, timeout_s: float, connect_s: float | None = None
    ) -> Response:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._wire.send(
                    method,
                    post.url,
                    headers=post.headers,
                    content=post.content,
                    connect_s=connect_s,
                )
        except TimeoutError:
            raise timed_out(timeout_s) from None
        except WireError as error:
            raise connection_lost(f"{self._url}: {error}: {error.__cause__}") from error


def _refusal(answer: Response) -> InferError:
    refusal = parse_refusal(answer.body, answer.headers.get("Retry-After"))
    return refusal_error(refusal, answer.status)


def _tensor(
    samples: np.ndarray | tuple[bytes, ...], *, is_json: bool
) -> tuple[dict[str, Any], bytes]:
    """Return the input tensor as JSON, and the bytes that follow the JSON."""
    fields: dict[str, Any] = {"name": INPUT_NAME}
    if isinstance(samples, tuple):
        fields |= {"datatype": IMAGE_TYPE, "shape": [len(samples)]}
        tail = b"".join(BYTES_LENGTH.pack(len(file)) + file for file in samples)
    else:
        fields |= {"datatype": samples.dtype.name.upper(), "shape": list(samples.shape)}
        tail = samples.tobytes()
    if not is_json:
        return fields | {"parameters": {"binary_data_size": len(tail)}}, tail
    if isinstance(samples, tuple):
        fields["parameters"] = {"content_type": "base64"}
        fields["data"] = [base64.b64encode(file).decode() for file in samples]
    else:
        fields["data"] = samples.ravel().tolist()
    return fields, b""
