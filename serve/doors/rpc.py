"""The gRPC door: `inference.GRPCInferenceService` of the Open Inference Protocol V2.

It lives in the event loop of the HTTP door and serves the same models with the same deadlines,
refusals and parameters. Arrival is stamped when the headers of a call are there, before its message
is read. Who may not ask, or asks too often, is refused then: its message is not read, of which no
more comes than a window of HTTP/2. One that is read has a time limit, and takes its bytes from the
budget of all requests. A refusal ends the call with the status of `models/limits.py` and the
details as trailing metadata: `reason`, `status`, and where known `retry_after_s` and
`earliest_finish_s`. The call's own deadline is a hard one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serve.access.guard import Caller, address_of
from serve.access.tls import TlsFiles
from serve.config import ServeConfigError
from serve.doors import rpc_messages as messages
from serve.doors.parse_turn import ParseTurn
from serve.doors.request_id import HEADER, RequestIds
from serve.doors.server import Server
from serve.models.limits import REASONS, RefusedError
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import REPLICAS, SERVICE

logger = logging.getLogger(__name__)

_OVERHEAD_BYTES = 64 * 2**10  # of a message: names, parameters, framing
_LARGEST_MESSAGE_BYTES = 2**31 - 1
_ONLY_IDENTITY = 1 << grpc.Compression.NoCompression.value

_MOST_STREAMS = 1024  # calls at once on one connection; the next one waits at its client
_MOST_CONNECTIONS = 2**16
_PATIENCE = (  # with connections on which nothing comes, in milliseconds
    ("grpc.server_handshake_timeout_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),  # is somebody there?
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # of clients that ask the same
)

Context = Any  # grpc.aio.ServicerContext; grpc comes without types


_NOBODY = Caller()


@dataclass(slots=True)
class Call:
    """One call: its context, when its headers were there (on the engine's clock), its id.

    Who calls is known once the guard has let them in, the message once it is read.
    """

    context: Context
    arrival_s: float
    request_id: str
    caller: Caller = _NOBODY
    message: Any = None

    def headers(self) -> dict[str, str]:
        """Return the call's metadata as headers, binary ones left out."""
        metadata = self.context.invocation_metadata()
        return {key: value for key, value in metadata if isinstance(value, str)}


Handler = Callable[[Call], Awaitable[Any]]

_OPEN = ("ServerLive", "ServerReady")  # health: without a token


class RpcDoor(grpc.GenericRpcHandler):
    """Answers the calls of one server; give it to `add_generic_rpc_handlers`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._models = server.models
        self._guard = server.guard
        self._clock = server.models.clock
        self._request_ids = RequestIds()
        self._parse_turn = ParseTurn()
        self.largest_bytes = min(server.max_body_bytes + _OVERHEAD_BYTES, _LARGEST_MESSAGE_BYTES)
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
        arrival_s = self._clock() - self.server.loop_lag.now_s()
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        handle, request_class, is_open = method

        async def answer(messages: AsyncIterator[bytes], context: Context) -> Any:
            call = Call(context, arrival_s, self._request_id(context))
            if is_open:  # nothing of its message matters
                return await self._answer(handle, call)
            read = functools.partial(self._read, handle, request_class, messages)
            return await self._answer(read, call)

        # As a stream, so that it is called before its one message is read.
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=_serialize)

    async def _read(
        self, handle: Handler, request_class: Any, messages: AsyncIterator[bytes], call: Call
    ) -> Any:
        """Let the caller in, read its message, handle it. Raises RefusedError."""
        call.caller = self._identify(call.context)
        if handle == self._model_infer:
            self._guard.admit(call.caller)
        async with self.server.budget.body() as inflight:
            async with inflight.arriving():
                await inflight.take(min(self.largest_bytes, self.server.budget.max_bytes))
                data = await anext(messages, b"")
            inflight.shrink(len(data))
            async with self._parse_turn.of(len(data)):
                call.message = _parse(request_class, data)
            del data
            return await handle(call)

    def _identify(self, context: Context) -> Caller:
        metadata = dict(context.invocation_metadata() or ())
        tenant_header = self._guard.tenant_header
        return self._guard.identify(
            "infer",
            authorization=metadata.get("authorization"),
            peer=address_of(context.peer()),
            forwarded=metadata.get("x-forwarded-for"),
            tenant=None if tenant_header is None else metadata.get(tenant_header),
        )

    def _request_id(self, context: Context) -> str:
        metadata = dict(context.invocation_metadata() or ())
        return self._request_ids.give(metadata.get(HEADER))

    async def _answer(self, handle: Handler, call: Call) -> Any:
        context, request_id = call.context, call.request_id
        try:
            answer = await handle(call)
            metadata = context.trailing_metadata() or ()
            context.set_trailing_metadata((*metadata, (HEADER, request_id)))
            return answer
        except RefusedError as error:
            await self._refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("a call failed")
            text = "an internal error; the server's log has it"
            await self._refuse(call, RefusedError("internal", text))

    async def _refuse(self, call: Call, error: RefusedError) -> NoReturn:
        self.server.metrics.refused("grpc", error.reason, call.caller.tenant.name)
        details: Mapping[str, object] = {**error.details(), HEADER: call.request_id}
        call.context.set_trailing_metadata(tuple((name, str(v)) for name, v in details.items()))
        code = getattr(grpc.StatusCode, REASONS[error.reason].grpc)
        await call.context.abort(code, error.message)
        raise AssertionError("abort raises")

    async def _server_live(self, _: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=not self._models.fault())

    async def _server_ready(self, _: Call) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=_is_ready(self._models))

    async def _model_ready(self, call: Call) -> pb.ModelReadyResponse:
        model = self._models.find(call.message.name, call.message.version or None)
        return pb.ModelReadyResponse(ready=_is_ready(model))

    async def _server_metadata(self, call: Call) -> pb.ServerMetadataResponse:
        replicas = self.server.replicas
        if replicas.tag:  # the message has no place for them
            named = json.dumps(replicas.named())
            call.context.set_trailing_metadata(((REPLICAS, named),))
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
        request = messages.parse_infer(
            message, model.spec, max_json_bytes=self.server.max_json_bytes
        )
        self._guard.charge(call.caller, len(request.samples))
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
            tenant=call.caller.tenant,
        )
        tag = self.server.replicas.tag
        return messages.build_response(request, model.spec, model.policy_name, replies, tag)


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


class RpcPort:
    """A port that is open for gRPC; `own_port` is one that no other replica shares."""

    def __init__(
        self, server: Any, port: int, own_port: int, drain_left_s: Callable[[], float]
    ) -> None:
        self._server = server
        self._drain_left_s = drain_left_s
        self.port = port
        self.own_port = own_port

    async def close(self) -> None:
        """Take no more connections or calls, and send clients elsewhere; finish what is open."""
        await self._server.stop(self._drain_left_s())


@contextlib.asynccontextmanager
async def rpc_listening(
    door: RpcDoor,
    host: str,
    port: int,
    *,
    max_connections: int = _MOST_CONNECTIONS,
    max_age_s: float | None = None,
    is_shared: bool = False,
    tls: TlsFiles | None = None,
) -> AsyncIterator[RpcPort]:
    """Serve `door` on a port from this event loop, yield the port; at the end, finish open calls.

    Replicas on one host may share the port (`is_shared`); each then has one of its own besides.
    Connections older than `max_age_s` are told to go (GOAWAY); calls on them end first. Raises
    ServeConfigError when the port is taken.
    Compressed messages are refused: gRPC bounds their size before it unpacks them, not after.
    """
    age = () if max_age_s is None else (("grpc.max_connection_age_ms", round(max_age_s * 1e3)),)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", door.largest_bytes),
            ("grpc.so_reuseport", int(is_shared)),
            ("grpc.compression_enabled_algorithms_bitset", _ONLY_IDENTITY),
            ("grpc.max_concurrent_streams", _MOST_STREAMS),
            ("grpc.max_allowed_incoming_connections", max_connections),
            *_PATIENCE,
            *age,
        ]
    )
    server.add_generic_rpc_handlers((door,))
    name = f"[{host}]" if ":" in host else host

    def listen(on_port: int) -> int:
        address = f"{name}:{on_port}"
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.rpc_credentials())

    try:
        bound_port = listen(port)
        own_port = listen(0) if is_shared else bound_port
    except RuntimeError:
        raise ServeConfigError(f"gRPC port {port} on {host} is not free: give another") from None
    await server.start()
    try:
        yield RpcPort(server, bound_port, own_port, door.server.drain_left_s)
    finally:
        await server.stop(door.server.drain_left_s())
