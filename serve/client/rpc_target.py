"""The Open Inference Protocol over gRPC, for open-loop replay: a target like `rest_target`'s.

Tensors travel raw. The SLO goes as metadata `x-slo-ms`, as soft as over HTTP; the call's own
deadline is the client's timeout, which is hard.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import numpy as np

from serve.client.environment import bearer
from serve.client.rest_answers import OUR_STATUSES, ClientError, executed, unreadable
from serve.client.rpc_answers import (
    parse_refusal,
    read_first_output,
    read_metadata,
    read_parameters,
)
from serve.client.rpc_channel import async_rpc_channel, call_of
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import SLO_HEADER, priority_of
from traces.open_loop.target import Model, ReplayReply, ReplayRequest, TensorSpec

_METADATA_TIMEOUT_S = 10.0


class RpcTarget:
    """Sends samples to one model of one server at `grpc://host:port` or `grpcs://host:port`."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self.model = model
        self._channel = async_rpc_channel(url)
        self._infer = self._method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
        self._tensor = TensorSpec(name="input", datatype="UINT8", shape=(-1, -1, -1, -1))

    async def describe(self) -> Model:
        """Return the model, and send what it takes from now on.

        Raises ClientError when there is no metadata, or none that a replay can serve.
        """
        get_metadata = self._method(
            "ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse
        )
        try:
            message = pb.ModelMetadataRequest(name=self.model)
            call = get_metadata(
                message, timeout=_METADATA_TIMEOUT_S, metadata=tuple(bearer().items())
            )
            about = await call
            parameters = read_metadata(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            text = f"{error.code().name}: {error.details()}"
            raise ClientError(f"{self._url}: model {self.model!r}: no answer ({text})") from None
        if len(about.inputs) != 1:
            raise ClientError(
                f"{self._url}: the metadata list {len(about.inputs)} inputs; a replay needs one"
            )
        (tensor,) = about.inputs
        self._tensor = TensorSpec(
            name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape)
        )
        versions = tuple(about.versions)
        return Model(name=self.model, tensor=self._tensor, versions=versions, parameters=parameters)

    async def server(self) -> dict[str, Any]:
        """Return what the server says of itself that a replay needs. Raises ClientError."""
        get_metadata = self._method(
            "ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse
        )
        try:
            call = get_metadata(
                pb.ServerMetadataRequest(),
                timeout=_METADATA_TIMEOUT_S,
                metadata=tuple(bearer().items()),
            )
            await call
            return read_metadata(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            text = f"{error.code().name}: {error.details()}"
            raise ClientError(f"{self._url}: no answer ({text})") from None

    async def prepare(self, payloads: np.ndarray) -> None:
        """Nothing to do: bytes go as they are."""

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one sample and return how it ended; never raises for what a server may do."""
        sample = request.payload
        message = pb.ModelInferRequest(model_name=self.model, raw_input_contents=[sample.tobytes()])
        message.inputs.add(
            name=self._tensor.name,
            datatype=self._tensor.datatype,
            shape=[1, *sample.shape] if self._tensor.is_batched else list(sample.shape),
        )
        if request.query_class is not None:
            message.parameters["priority"].int64_param = priority_of(request.query_class)
        metadata = ((SLO_HEADER, f"{request.slo_s * 1e3:.6g}"), *bearer().items())
        try:
            answer = await self._infer(message, timeout=request.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return _refusal(error)
        return _answer(answer)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    def _method(self, name: str, request_type: Any, response_type: Any) -> Any:
        return call_of(self._channel, name, request_type, response_type)


async def connect_rpc(url: str, model: str | None) -> tuple[RpcTarget, Model]:
    """Return a client of `model` and what the server says of it. Raises ClientError."""
    if model is None:
        raise ClientError(f"{url}: the protocol does not list models over gRPC: give --model")
    client = RpcTarget(url, model)
    try:
        return client, await client.describe()
    except ClientError:
        await client.close()
        raise


def _answer(answer: pb.ModelInferResponse) -> ReplayReply:
    if not answer.outputs:
        return unreadable("it holds no output tensor")
    try:
        output = read_first_output(answer)
    except ValueError:
        return unreadable("the output's bytes do not fit its type")
    return executed(output, read_parameters(answer))


def _refusal(error: grpc.aio.AioRpcError) -> ReplayReply:
    """Read how a query ended from the server's word; another server's from the gRPC status."""
    refusal, code = parse_refusal(error), error.code()
    if refusal.status in OUR_STATUSES:
        return ReplayReply(
            status=refusal.status,
            reason=refusal.reason,
            retry_after_s=refusal.retry_after_s,
            earliest_finish_s=refusal.earliest_finish_s,
        )
    if refusal.status == "late" or code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ReplayReply(status="dropped", reason="expired")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ReplayReply(status="rejected", reason=code.name, retry_after_s=refusal.retry_after_s)
    is_broken = code == grpc.StatusCode.UNAVAILABLE
    return ReplayReply(status="failed", reason=f"grpc {code.name}", can_retry=is_broken)
