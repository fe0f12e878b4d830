"""An Open Inference Protocol client for open-loop replay: cheap to send, honest about the answer.

It fulfils `traces.replay.Target`. Client, server and device often share few cores, so a request
must cost little: tensors travel as bytes (binary tensor extension), the JSON head is the same for
every sample and made once, and requests go straight to httpx's transport, past its redirects,
cookies and URL merging.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np

from traces.replay import ReplayReply, ReplayRequest

_BINARY_HEADER = "Inference-Header-Content-Length"
_TRANSPORT_ERRORS = (httpx.TransportError, httpx.StreamError)


class ClientError(RuntimeError):
    """The server can't be reached, or does not serve what was asked for."""


class OipClient:
    """Sends samples to one model of one server; `max_connections` bounds the open requests."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_connections: int = 256,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base = httpx.URL(url)
        self._server_url = base.copy_with(path=f"{base.path.rstrip('/')}/v2")
        self.aim(model)
        limits = httpx.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=None,
        )
        self._transport = transport or httpx.AsyncHTTPTransport(limits=limits)
        self._heads: dict[tuple[int, ...], bytes] = {}

    def aim(self, model: str) -> None:
        """Ask this model from now on."""
        path = f"{self._server_url.path}/models/{model}"
        self.model = model
        self._model_url = self._server_url.copy_with(path=path)
        self._infer_url = self._server_url.copy_with(path=f"{path}/infer")

    async def metadata(self) -> dict[str, Any]:
        """Return the model's metadata. Raises ClientError when there is none to be had."""
        return await self._get(self._model_url)

    async def models(self) -> list[str]:
        """Return the names of the models that the server lists. Raises ClientError."""
        return list((await self._get(self._server_url)).get("models", []))

    async def _get(self, url: httpx.URL) -> dict[str, Any]:
        try:
            response = await self._transport.handle_async_request(httpx.Request("GET", url))
            body = await response.aread()
            if response.status_code != 200:
                raise ClientError(f"{url}: {response.status_code} {_error_text(body)}")
            return json.loads(body)
        except _TRANSPORT_ERRORS as error:
            raise ClientError(f"{url}: no answer ({type(error).__name__}: {error})") from None
        except ValueError:
            raise ClientError(f"{url}: the answer is not JSON; is this a model server?") from None

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one sample and return how it ended; never raises for what a server may do."""
        head = self._head(request.payload.shape)
        headers = {
            _BINARY_HEADER: str(len(head)),
            "Content-Type": "application/octet-stream",
            "x-slo-ms": f"{request.slo_s * 1e3:.6g}",
        }
        if request.timeout_s is not None:
            headers["x-request-timeout-seconds"] = f"{request.timeout_s:.6g}"
        wire = httpx.Request(
            "POST",
            self._infer_url,
            headers=headers,
            content=head + request.payload.tobytes(),
        )
        try:
            response = await self._transport.handle_async_request(wire)
            body = await response.aread()
        except _TRANSPORT_ERRORS as error:
            return _ended("failed", f"connection: {type(error).__name__}")
        if response.status_code == 200:
            return _executed(response, body)
        return _refused(response.status_code, body)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def _head(self, shape: tuple[int, ...]) -> bytes:
        """Return the JSON part of a request with one sample of this shape."""
        if shape not in self._heads:
            tensor = {
                "name": "input",
                "datatype": "UINT8",
                "shape": [1, *shape],
                "parameters": {"binary_data_size": int(np.prod(shape))},
            }
            fields = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
            self._heads[shape] = json.dumps(fields).encode()
        return self._heads[shape]


async def connect(url: str, model: str | None = None) -> tuple[OipClient, dict[str, Any]]:
    """Return a client of `model` (None: the server's first) and that model's metadata.

    Raises ClientError when the server can't be reached or does not serve it.
    """
    try:
        client = OipClient(url, model or "")
        if model is None:
            models = await client.models()
            if not models:
                raise ClientError(f"{url} does not list its models: name one with --model")
            client.aim(models[0])
        return client, await client.metadata()
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ClientError(f"{url}: not a URL of a server ({error})") from None


def _executed(response: httpx.Response, body: bytes) -> ReplayReply:
    length = response.headers.get(_BINARY_HEADER)
    fields = json.loads(body if length is None else body[: int(length)])
    if length is None:
        output = np.asarray(fields["outputs"][0]["data"], dtype=np.float32)
    else:
        output = np.frombuffer(body, dtype="<f4", offset=int(length))
    about = fields["parameters"]
    return ReplayReply(
        status="ok",
        reason="",
        output=output,
        subnet_id=about["subnet"],
        accuracy=about["accuracy"],
        batch_size=about["batch_size"],
        batch_id=about["batch_id"],
        queue_s=about["queue_s"],
        execution_s=about["execution_s"],
    )


def _refused(status_code: int, body: bytes) -> ReplayReply:
    """Read how a query ended from the server's word; another server's from the HTTP status."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if isinstance(fields, dict) and fields.get("status") in ("dropped", "rejected", "failed"):
        return _ended(fields["status"], str(fields.get("reason", "")))
    if isinstance(fields, dict) and fields.get("status") == "late":
        return _ended("dropped", "expired")
    if status_code in (408, 504):
        return _ended("dropped", "expired")
    return _ended("rejected" if status_code in (429, 503) else "failed", f"http_{status_code}")


def _ended(status: str, reason: str) -> ReplayReply:
    return ReplayReply(status=status, reason=reason)


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:200])
