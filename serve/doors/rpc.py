"""The gRPC door: `inference.GRPCInferenceService` of the Open Inference Protocol V2.

It lives in the event loop of the HTTP door and serves the same models with the same deadlines,
refusals and parameters. Arrival is stamped when the headers of a call are there, before its message
is read. A refusal ends the call with the status of `models/limits.py` and the details as
trailing metadata: `reason`, `status`, and where known `retry_after_s` and `earliest_finish_s`. The
call's own deadline is a hard one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serve.access.guard import address_of
from serve.access.tls import TlsFiles
from serve.config import ServeConfigError
from serve.doors import rpc_messages as messages
from serve.doors.request_id import HEADER, RequestIds
from serve.doors.server import Server
from serve.models.limits import REASONS, RefusedError
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import SERVICE

logger = logging.getLogger(__name__)

_OVERHEAD_BYTES = 64 * 2**10  # of a message: names, parameters, framing
_LARGEST_MESSAGE_BYTES = 2**31 - 1
_ONLY_IDENTITY = 1 << grpc.Compression.NoCompression.value

Context = Any  # grpc.aio.ServicerContext; grpc comes without types


class Call(NamedTuple):
    """One call: its message, its context, when its headers were there (on the engine's clock)."""

    message: Any
    context: Context
    arrival_s: float
    principal: str
    request_id: str

    def headers(self) -> dict[str, str]:
        """Return the call's metadata as headers, binary ones left out."""
        metadata = self.context.invocation_metadata()
        return {key: value for key, value in metadata if isinstance(value, str)}


Handler = Callable[[Call], Awaitable[Any]]

_OPEN = ("ServerLive", "ServerReady")  # health: without a token


class RpcDoor(grpc.GenericRpcHandler):
    """Answers the calls of one server; give it to `add_generic_rpc_handlers`."""

    def __init__(self, server: Server) -> None:
        self._models = server.models
        self._guard = server.guard
        self._refused = functools.partial(server.metrics.refused, "grpc")
        self._clock = server.models.clock
        self._request_ids = RequestIds()
        methods: dict[str, tuple[Handler, Any]] = {
            "ServerLive": (self._server_live, pb.ServerLiveRequest),
            "ServerReady": (self._server_ready, pb.ServerReadyRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self._model_config, pb.ModelConfigRequest),
            "ModelStatistics": (self._model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self._repository_index, pb.RepositoryIndexRequest),
            "ModelInfer": (self._model_infer, pb.ModelInferRequest),
        }
        self._methods = {
            f"/{SERVICE}/{name}": (*method, name in _OPEN) for name, method in methods.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return how to answer a call; gRPC asks when its headers are there."""
        arrival_s = self._clock()
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        handle, request_class, is_open = method

        async def answer(data: bytes, context: Context, request_id: str) -> Any:
            principal = "" if is_open else self._identify(context)
            if handle == self._model_infer:
                self._guard.admit(principal)
            message = _parse(request_class, data)
            return await handle(Call(message, context, arrival_s, principal, request_id))

        return grpc.unary_unary_rpc_method_handler(
            functools.partial(self._answer, answer),  # given bytes: no parsing for who may not ask
            response_serializer=_serialize,
        )

    def _identify(self, context: Context) -> str:
        metadata = dict(context.invocation_metadata() or ())
        return self._guard.identify(
            "infer",
            authorization=metadata.get("authorization"),
            peer=address_of(context.peer()),
        )

    async def _answer(
        self, handle: Callable[[bytes, Context, str], Awaitable[Any]], data: bytes, context: Context
    ) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        request_id = self._request_ids.give(metadata.get(HEADER))
        try:
            answer = await handle(data, context, request_id)
            metadata = context.trailing_metadata() or ()
            context.set_trailing_metadata((*metadata, (HEADER, request_id)))
            return answer
        except RefusedError as error:
            self._refused(error.reason)
            await _refuse(context, error, request_id)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("a call of %d bytes failed", len(data))
            error = RefusedError("internal", "an internal error; the server's log has it")
            self._refused(error.reason)
            await _refuse(context, error, request_id)

    async def _server_live(self, _: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=not self._models.fault())

    async def _server_ready(self, _: Call) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=_is_ready(self._models))

    async def _model_ready(self, call: Call) -> pb.ModelReadyResponse:
        model = self._models.find(call.message.name, call.message.version or None)
        return pb.ModelReadyResponse(ready=_is_ready(model))

    async def _server_metadata(self, _: Call) -> pb.ServerMetadataResponse:
        return messages.server_metadata()

    async def _model_metadata(self, call: Call) -> pb.ModelMetadataResponse:
        model = self._models.find(call.message.name, call.message.version or None)
        about = model.spec.about(model.policy_name)  # the message has no place for it
        told = {**model.spec.input_limits(), "settings": model.settings()}
        texts = {name: json.dumps(value) for name, value in told.items()}
        call.context.set_trailing_metadata((*about.items(), *texts.items()))
        return messages.model_metadata(model.spec)

    async def _model_config(self, call: Call) -> pb.ModelConfigResponse:
        model = self._models.find(call.message.name, call.message.version or None)
        return messages.model_config(model.spec, model.policy_name)

    async def _model_statistics(self, call: Call) -> pb.ModelStatisticsResponse:
        name, version = call.message.name, call.message.version or None
        models = [self._models.find(name, version)] if name else self._models
        rows = [row for m in models for row in m.statistics.rows(m.spec.name, version)]
        return messages.statistics(rows)

    async def _repository_index(self, call: Call) -> pb.RepositoryIndexResponse:
        return messages.index(self._models.index(is_ready=call.message.ready))

    async def _model_infer(self, call: Call) -> pb.ModelInferResponse:
        message, version = call.message, call.message.model_version or None
        model = self._models.find(message.model_name, version)
        request = messages.parse_infer(message, model.spec)
        self._guard.charge(call.principal, len(request.samples))
        if version is not None:
            request.parameters["subnet"] = version
        remaining_s = call.context.time_remaining()
        timeout_s = None if remaining_s is None else self._clock() - call.arrival_s + remaining_s
        replies = await model.infer(
            request,
            call.headers(),
            arrival_s=call.arrival_s,
            call_timeout_s=timeout_s,
            request_id=call.request_id,
        )
        return messages.build_response(request, model.spec, model.policy_name, replies)


async def _refuse(context: Context, error: RefusedError, request_id: str) -> NoReturn:
    details: Mapping[str, object] = {**error.details(), HEADER: request_id}
    context.set_trailing_metadata(tuple((name, str(value)) for name, value in details.items()))
    await context.abort(getattr(grpc.StatusCode, REASONS[error.reason].grpc), error.message)
    raise AssertionError("abort raises")


def _parse(request_class: Any, data: bytes) -> Any:
    try:
        return request_class.FromString(data)
    except DecodeError:
        name = request_class.DESCRIPTOR.name
        raise RefusedError("bad_request", f"the message is no {name} of the protocol") from None


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()


def _is_ready(served: Any) -> bool:
    try:
        served.check_ready()
    except RefusedError:
        return False
    return True


@contextlib.asynccontextmanager
async def rpc_listening(
    door: RpcDoor,
    host: str,
    port: int,
    *,
    max_body_bytes: int,
    drain_timeout_s: float,
    is_shared: bool = False,
    tls: TlsFiles | None = None,
) -> AsyncIterator[int]:
    """Serve `door` on a port from this event loop, yield the port; at the end, finish open calls.

    Replicas on one host may share the port (`is_shared`). Raises ServeConfigError when it is taken.
    Compressed messages are refused: gRPC bounds their size before it unpacks them, not after.
    """
    largest_bytes = min(max_body_bytes + _OVERHEAD_BYTES, _LARGEST_MESSAGE_BYTES)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", largest_bytes),
            ("grpc.so_reuseport", int(is_shared)),
            ("grpc.compression_enabled_algorithms_bitset", _ONLY_IDENTITY),
        ]
    )
    server.add_generic_rpc_handlers((door,))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            bound_port = server.add_insecure_port(address)
        else:
            bound_port = server.add_secure_port(address, tls.rpc_credentials())
    except RuntimeError:
        raise ServeConfigError(f"gRPC port {port} on {host} is not free: give another") from None
    await server.start()
    try:
        yield bound_port
    finally:
        await server.stop(drain_timeout_s)
