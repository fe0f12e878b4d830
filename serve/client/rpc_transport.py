"""Our requests over gRPC, blocking or not: `rest_transport`'s twins at `grpc://host:port`
or, with TLS, `grpcs://host:port`.

The SLO goes as metadata `x-slo-ms`. A timeout goes as the parameter of that name beside the call's
own deadline, which is invisible behind some proxies. Without one the call has no deadline: it would
take the place of the deployment's SLO.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from serve.client.errors import InferError, refusal_error, timed_out, unreadable_answer
from serve.client.infer_call import InferCall, InferResult, TimeLimits, make_infer_result
from serve.client.rpc_answers import (
    parse_refusal,
    read_first_output,
    read_metadata,
    read_parameters,
)
from serve.client.rpc_channel import async_rpc_channel, call_of, rpc_channel
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import BYTES_LENGTH, IMAGE_TYPE, INPUT_NAME, REPLICAS, SLO_HEADER

_METHODS: dict[str, tuple[str, Any, Any]] = {
    "server": ("ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse),
    "live": ("ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse),
    "ready": ("ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse),
    "model": ("ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse),
    "model_ready": ("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse),
    "statistics": ("ModelStatistics", pb.ModelStatisticsRequest, pb.ModelStatisticsResponse),
    "model_statistics": ("ModelStatistics", pb.ModelStatisticsRequest, pb.ModelStatisticsResponse),
}


class RpcTransport:
    """Sends and waits; threads may share one."""

    def __init__(self, url: str, *, token: str | None) -> None:
        self._channel = rpc_channel(url)
        self._metadata = _authorization(token)
        self._infer = _infer_call(self._channel)

    def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        """Send one request and return how it ended."""
        call = self._infer.future(_message(infer_call, times), **_terms(times, self._metadata))
        try:
            return _result(call.result(timeout=times.limit_s), infer_call)
        except grpc.FutureTimeoutError:
            call.cancel()
            return timed_out(times.limit_s)
        except grpc.RpcError as error:
            return _refusal(error, times.limit_s)

    def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        """Return what the server says of itself or of a model. Raises InferError."""
        name, request_type, response_type = _METHODS[kind]
        call = call_of(self._channel, name, request_type, response_type)
        try:
            answer, ended = call.with_call(
                _about(request_type, model), timeout=timeout_s, metadata=self._metadata
            )
            return _plain(answer) | _replicas(ended.trailing_metadata())
        except grpc.RpcError as error:
            raise _refusal(error, timeout_s) from None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class AsyncRpcTransport:
    """Sends many at once, in the event loop that it is made in."""

    def __init__(self, url: str, *, token: str | None) -> None:
        self._channel = async_rpc_channel(url)
        self._metadata = _authorization(token)
        self._infer = _infer_call(self._channel)

    async def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        """Send one request and return how it ended."""
        call = self._infer(_message(infer_call, times), **_terms(times, self._metadata))
        try:
            async with asyncio.timeout(times.limit_s):
                return _result(await call, infer_call)
        except TimeoutError:
            return timed_out(times.limit_s)
        except grpc.aio.AioRpcError as error:
            return _refusal(error, times.limit_s)

    async def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        """Return what the server says of itself or of a model. Raises InferError."""
        name, request_type, response_type = _METHODS[kind]
        call = call_of(self._channel, name, request_type, response_type)
        try:
            asked = call(_about(request_type, model), timeout=timeout_s, metadata=self._metadata)
            answer, trailing = await asked, await asked.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            raise _refusal(error, timeout_s) from None
        return _plain(answer) | _replicas(trailing)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def _infer_call(channel: Any) -> Any:
    return call_of(channel, "ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)


def _authorization(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _terms(times: TimeLimits, metadata: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    if times.slo_s is not None:
        metadata = (*metadata, (SLO_HEADER, f"{times.slo_s * 1e3:.6g}"))
    return {"timeout": None if times.timeout_s is None else times.limit_s, "metadata": metadata}


def _message(infer_call: InferCall, times: TimeLimits) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=infer_call.model)
    if times.timeout_s is not None:
        message.parameters["timeout"].int64_param = round(times.timeout_s * 1e6)
    for name, value in infer_call.parameters.items():
        match value:
            case str():
                message.parameters[name].string_param = value
            case int():
                message.parameters[name].int64_param = value
            case float():
                message.parameters[name].double_param = value
    samples = infer_call.samples
    if isinstance(samples, tuple):
        message.inputs.add(name=INPUT_NAME, datatype=IMAGE_TYPE, shape=[len(samples)])
        raw = b"".join(BYTES_LENGTH.pack(len(file)) + file for file in samples)
    else:
        datatype = samples.dtype.name.upper()
        message.inputs.add(name=INPUT_NAME, datatype=datatype, shape=list(samples.shape))
        raw = samples.tobytes()
    message.raw_input_contents.append(raw)
    return message


def _result(answer: pb.ModelInferResponse, infer_call: InferCall) -> InferResult | InferError:
    if not answer.outputs:
        return unreadable_answer("it holds no output tensor")
    try:
        return make_infer_result(
            read_first_output(answer), read_parameters(answer), len(infer_call.samples)
        )
    except ValueError as error:
        return unreadable_answer(str(error))


def _refusal(error: Any, timeout_s: float) -> InferError:
    refusal = parse_refusal(error)
    if not refusal.reason and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return timed_out(timeout_s)
    return refusal_error(refusal, error.code().name)


def _about(request_type: Any, model: str | None) -> Any:
    return request_type() if model is None else request_type(name=model)


def _replicas(trailing: Any) -> dict[str, Any]:
    """Return the replicas that a server's metadata name in their trailer, as HTTP has them."""
    named = read_metadata(trailing).get(REPLICAS)
    return {} if named is None else {REPLICAS: named}


def _plain(answer: Any) -> dict[str, Any]:
    """Return a message as the HTTP form has it (64-bit numbers come as text)."""
    return MessageToDict(answer, preserving_proto_field_name=True)
