"""An Open Inference Protocol client for open-loop replay: cheap to send, honest about the answer.

It fulfils `traces.Target`, for any server of the protocol. Client, server and device often share
few cores, so a request must cost little: tensors travel as bytes where the server takes the binary
tensor extension, and the JSON around them is made once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from serve.client.addresses import TAKEN, request_base, socket_path
from serve.client.http_wire import HttpWire, Wire, WireError
from serve.client.rest_answers import ClientError, error_text, read_answer, read_model, read_refusal
from serve.client.rest_transport import time_headers
from serve.proto.names import BINARY_HEADER, priority_of
from traces.open_loop.target import Model, ReplayReply, ReplayRequest, TensorSpec

_OURS = TensorSpec(name="input", datatype="UINT8", shape=(-1, -1, -1, -1))
_OUR_SERVER = "supernet"
_ENCODED_BYTES = 256 * 2**20

__all__ = ["ClientError", "RestTarget", "connect"]


class RestTarget:
    """Sends samples to one model of one server.

    As made it speaks to a server of ours; `describe` asks the server what it takes.
    """

    def __init__(self, url: str, model: str, *, wire: Wire | None = None) -> None:
        self._url = url
        self._server_url = f"{request_base(url)}/v2"
        self.aim(model)
        self._wire = wire or HttpWire(socket_path(url))
        self._tensor = _OURS
        self._is_binary = True
        self._sends_timeout = False
        self._encoded: dict[tuple[int, ...] | int | None, bytes] = {}

    def aim(self, model: str) -> None:
        """Ask this model from now on."""
        self.model = model
        self._model_url = f"{self._server_url}/models/{quote(model, safe='')}"
        self._infer_url = f"{self._model_url}/infer"

    async def metadata(self) -> dict[str, Any]:
        """Return the model's metadata. Raises ClientError when there is none to be had."""
        return await self._get(self._model_url)

    async def server(self) -> dict[str, Any]:
        """Return the server's metadata. Raises ClientError."""
        return await self._get(self._server_url)

    async def describe(self) -> Model:
        """Return the model, and send in the form that model and server take from now on.

        A server whose extensions do not name `binary_tensor_data` gets JSON. One that is not ours
        and has `schedule_policy` gets the time left as that extension's `timeout`, too.

        Raises ClientError when there is no metadata, or none that a replay can serve.
        """
        model = read_model(await self.metadata(), self._model_url)
        try:
            server = await self.server()
        except ClientError:  # optional: the model has answered, so somebody is there
            server = {}
        listed = server.get("extensions")
        extensions = listed if isinstance(listed, list) else []
        self._tensor = model.tensor
        self._is_binary = "binary_tensor_data" in extensions
        self._sends_timeout = "schedule_policy" in extensions and server.get("name") != _OUR_SERVER
        return model

    async def prepare(self, payloads: np.ndarray) -> None:
        """Encode the samples where JSON makes that costly, as many as memory should hold."""
        self._encoded = {}
        num_bytes = 0
        for i, sample in enumerate(() if self._is_binary else payloads):
            self._encoded[i] = self._tensor_text(sample)
            num_bytes += len(self._encoded[i])
            if num_bytes > _ENCODED_BYTES:
                return

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one sample and return how it ended; never raises for what a server may do."""
        head = self._head(request)
        headers = time_headers(request.slo_s, request.timeout_s)
        if self._is_binary:
            headers[BINARY_HEADER] = str(len(head))
            headers["Content-Type"] = "application/octet-stream"
            content = head + request.payload.tobytes()
        else:
            headers["Content-Type"] = "application/json"
            content = head
        try:
            answer = await self._wire.send(
                "POST", self._infer_url, headers=headers, content=content
            )
        except WireError as error:
            return ReplayReply(status="failed", reason=f"connection: {error}", can_retry=True)
        if answer.status == 200:
            return read_answer(answer.body, answer.headers.get(BINARY_HEADER))
        return read_refusal(answer.status, answer.body, answer.headers.get("Retry-After"))

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    async def _get(self, url: str) -> dict[str, Any]:
        shown = url.replace(request_base(self._url), self._url.rstrip("/"), 1)
        try:
            answer = await self._wire.send("GET", url, headers={}, content=b"")
            if answer.status != 200:
                raise ClientError(f"{shown}: {answer.status} {error_text(answer.body)}")
            fields = json.loads(answer.body)
        except WireError as error:
            raise ClientError(f"{shown}: no answer ({error}: {error.__cause__})") from None
        except (ValueError, RecursionError):
            raise ClientError(f"{shown}: the answer is not JSON; is this a model server?") from None
        if not isinstance(fields, Mapping):
            raise ClientError(f"{shown}: the answer is no JSON object; is this a model server?")
        return dict(fields)

    def _head(self, request: ReplayRequest) -> bytes:
        """Return the JSON part of a request with one sample."""
        parameters: dict[str, Any] = {"binary_data_output": True} if self._is_binary else {}
        if request.query_class is not None:
            parameters["priority"] = priority_of(request.query_class)
        if self._sends_timeout:
            parameters["timeout"] = round(request.slo_s * 1e6)
        tensor = self._tensor_of(request)
        return b'{"inputs":[%b],"parameters":%b}' % (tensor, json.dumps(parameters).encode())

    def _tensor_of(self, request: ReplayRequest) -> bytes:
        """Return the tensor's JSON, made before if it can be; with bytes, samples share theirs."""
        key = request.payload.shape if self._is_binary else request.payload_id
        text = self._encoded.get(key)
        if text is None:
            text = self._tensor_text(request.payload)
            if self._is_binary:
                self._encoded[key] = text
        return text

    def _tensor_text(self, sample: np.ndarray) -> bytes:
        spec = self._tensor
        fields: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": [1, *sample.shape] if spec.is_batched else list(sample.shape),
        }
        if self._is_binary:
            fields["parameters"] = {"binary_data_size": sample.nbytes}
        else:
            fields["data"] = sample.ravel().tolist()
        return json.dumps(fields).encode()


async def connect(url: str, model: str | None = None) -> tuple[RestTarget, Model]:
    """Return a client of `model` (None: the server's first) and what the server says of that model.

    Raises ClientError when the server can't be reached or does not serve it.
    """
    if not url.startswith(("http://", "https://", "unix:")):
        raise ClientError(f"{url}: not a URL of a server; give {', '.join(TAKEN)}")
    client = RestTarget(url, model or "")
    try:
        if model is None:
            models = (await client.server()).get("models")
            if not isinstance(models, list) or not models:
                raise ClientError(f"{url} does not list its models: name one with --model")
            client.aim(str(models[0]))
        return client, await client.describe()
    except ClientError:
        await client.close()
        raise
