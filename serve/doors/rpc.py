"""The gRPC door: `inference.GRPCInferenceService` of the Open Inference Protocol V2.

It lives in the event loop of the HTTP door and serves the same models with the same deadlines,
refusals and parameters. Arrival is stamped when the headers of a call are there, before its message
is read. Who may not ask, or asks too often, is refused then: its message is not read, of which no
more comes than a window of HTTP/2. One that is read has a time limit, and takes its bytes from the
budget of all requests. A refusal ends the call with the status of `models/limits.py` and the
details as trailing metadata: `reason`, `status`, and where known `retry_after_s` and
`earliest_finish_s`. The call's own deadline is a hard one.

The services that tools ask for are here too: `grpc.health.v1.Health` and server reflection.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthListRequest

from serve.access.guard import UNIX, Caller, address_of
from serve.access.tls import TlsFiles
from serve.config import ServeConfigError
from serve.doors import rpc_messages as messages
from serve.doors.body_budget import BodyBudget, InflightBody
from serve.doors.headers import (
    REQUEST_ID,
    RequestIds,
    details_text,
    joined_metadata,
    metadata_text,
)
from serve.doors.parse_turn import SMALL_BYTES, ParseTurn
from serve.doors.rpc_health import HEALTH, RpcHealth
from serve.doors.rpc_reflection import reflection_methods
from serve.doors.server import Server
from serve.models.limits import REASONS, RefusedError
from serve.models.served_model import ServedModel
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import REPLICAS, SERVICE

logger = logging.getLogger(__name__)

_OVERHEAD_BYTES = 64 * 2**10  # of a message: names, parameters, framing
_LARGEST_MESSAGE_BYTES = 2**31 - 1
_ONLY_IDENTITY = 1 << grpc.Compression.NoCompression.value

_OPEN_MESSAGES = 4  # of calls that need no token, on their way at once
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
    """One call: its context, when its headers were there (on the engine's clock), its metadata.

    Who calls is known once the guard has let them in, the message once it is read.
    """

    context: Context
    arrival_s: float
    request_id: str
    headers: Mapping[str, str]
    caller: Caller = _NOBODY
    message: Any = None
    inflight: InflightBody | None = None

    @property
    def peer(self) -> str:
        """The address of the other end of the connection."""
        return address_of(self.context.peer())


Handler = Callable[[Call], Awaitable[Any]]
"""Answers a call whose message is read."""


class Method(NamedTuple):
    """How one method is answered, and which message it reads (None: it does not matter).

    `handle` is a `Handler`, of a stream an asynchronous generator over its messages. `is_open`:
    without a token (health).
    """

    handle: Any
    request_class: Any
    is_open: bool = False
    is_stream: bool = False


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
        # What anybody may send takes nothing from those who may ask.
        self._open_budget = BodyBudget(_OPEN_MESSAGES * self.largest_bytes)
        handlers: dict[str, tuple[Handler, Any]] = {
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self._model_config, pb.ModelConfigRequest),
            "ModelStatistics": (self._model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self._repository_index, pb.RepositoryIndexRequest),
            "ModelInfer": (self._model_infer, pb.ModelInferRequest),
            "SystemSharedMemoryStatus": (self._regions, pb.SystemSharedMemoryStatusRequest),
            "SystemSharedMemoryRegister": (
                self._register_region, pb.SystemSharedMemoryRegisterRequest,
            ),
            "SystemSharedMemoryUnregister": (
                self._unregister_region, pb.SystemSharedMemoryUnregisterRequest,
            ),
            "CudaSharedMemoryStatus": (self._no_regions, pb.CudaSharedMemoryStatusRequest),
            "CudaSharedMemoryUnregister": (
                self._no_regions_left, pb.CudaSharedMemoryUnregisterRequest,
            ),
        }  # fmt: skip
        health = RpcHealth(server.models)
        self._methods = {
            f"/{SERVICE}/ServerLive": Method(self._server_live, None, is_open=True),
            f"/{SERVICE}/ServerReady": Method(self._server_ready, None, is_open=True),
            f"/{HEALTH}/Check": Method(health.check, HealthCheckRequest, is_open=True),
            f"/{HEALTH}/List": Method(health.list, HealthListRequest, is_open=True),
            f"/{HEALTH}/Watch": Method(
                health.watch, HealthCheckRequest, is_open=True, is_stream=True
            ),
            **{f"/{SERVICE}/{name}": Method(*method) for name, method in handlers.items()},
            **{path: Method(*method, is_stream=True) for path, method in reflection_methods()},
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return how to answer a call; gRPC asks when its headers are there."""
        arrival_s = self._clock() - self.server.loop_lag.now_s()
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None

        async def answer(messages: AsyncIterator[bytes], context: Context) -> Any:
            call = self._call(context, arrival_s)
            return await self._answer(method, call, messages)

        async def stream(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            call = self._call(context, arrival_s)
            async for message in self._answer_each(method, call, messages):
                yield message

        # As streams, so that they are called before a message is read.
        if method.is_stream:
            return grpc.stream_stream_rpc_method_handler(stream, response_serializer=_serialize)
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=_serialize)

    def _call(self, context: Context, arrival_s: float) -> Call:
        headers = joined_metadata(context.invocation_metadata())
        return Call(context, arrival_s, self._request_ids.give(headers.get(REQUEST_ID)), headers)

    async def _answer(self, method: Method, call: Call, messages: AsyncIterator[bytes]) -> Any:
        context = call.context
        try:
            if method.request_class is None:  # nothing of its message matters
                answer = await method.handle(call)
            else:
                answer = await self._handle(method, call, messages)
            metadata = context.trailing_metadata() or ()
            context.set_trailing_metadata((*metadata, (REQUEST_ID, call.request_id)))
            return answer
        except RefusedError as error:
            self._refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("a call failed")
            text = "an internal error; the server's log has it"
            self._refuse(call, RefusedError("internal", text))

    async def _answer_each(
        self, method: Method, call: Call, messages: AsyncIterator[bytes]
    ) -> AsyncIterator[Any]:
        try:
            if not method.is_open:
                call.caller = self._identify(call)
            async for answer in method.handle(self._messages(method, messages)):
                yield answer
        except RefusedError as error:
            self._refuse(call, error)
        except Exception:  # the same boundary, for a call that answers in pieces
            logger.exception("a stream failed")
            text = "an internal error; the server's log has it"
            self._refuse(call, RefusedError("internal", text))

    async def _handle(self, method: Method, call: Call, messages: AsyncIterator[bytes]) -> Any:
        """Let the caller in, read the message, handle it. Raises RefusedError."""
        if not method.is_open:
            call.caller = self._identify(call)
            if method.request_class is pb.ModelInferRequest:
                self._guard.admit(call.caller)
        inflight = self._budget(method).body()
        try:
            data = await self._next(messages, inflight)
            if len(data or b"") <= SMALL_BYTES:
                call.message = _parse(method.request_class, data or b"")
            else:
                async with self._parse_turn.of(len(data or b"")):
                    call.message = _parse(method.request_class, data or b"")
            del data
            call.inflight = inflight
            return await method.handle(call)
        finally:
            inflight.release()

    async def _messages(self, method: Method, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Read the messages of a stream, each within the budget. Raises RefusedError."""
        while True:
            async with self._budget(method).body() as inflight:
                data = await self._next(messages, inflight)
                if data is None:
                    return
                yield _parse(method.request_class, data)

    async def _next(self, messages: AsyncIterator[bytes], inflight: InflightBody) -> bytes | None:
        """Read a message; None at the end. Raises RefusedError."""
        async with inflight.arriving():
            await inflight.take(min(self.largest_bytes, self.server.budget.max_bytes))
            data = await anext(messages, None)
        inflight.shrink(len(data or b""))
        return data

    def _budget(self, method: Method) -> BodyBudget:
        return self._open_budget if method.is_open else self.server.budget

    def _identify(self, call: Call) -> Caller:
        headers, tenant_header = call.headers, self._guard.tenant_header
        return self._guard.identify(
            "infer",
            authorization=headers.get("authorization"),
            peer=call.peer,
            forwarded=headers.get("x-forwarded-for"),
            tenant=None if tenant_header is None else headers.get(tenant_header),
        )

    def _refuse(self, call: Call, error: RefusedError) -> None:
        """Have the call end with an error, whatever it returns.

        `abort` would keep its exception in the context, which the frames in its traceback know: a
        cycle that holds the request until one is looked for.
        """
        error.__traceback__ = None  # it may be told again
        self.server.refused("grpc", error.reason, call.caller.tenant.name)
        details: Mapping[str, object] = {**error.details(), REQUEST_ID: call.request_id}
        call.context.set_trailing_metadata(tuple((name, str(v)) for name, v in details.items()))
        code = getattr(grpc.StatusCode, REASONS[error.reason].grpc)
        call.context.set_code(code)
        call.context.set_details(details_text(error.message))

    async def _server_live(self, _: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=not self._models.fault())

    async def _server_ready(self, _: Call) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=_is_ready(self._models))

    def _find(self, call: Call, name: str, version: str | None) -> ServedModel:
        return self.server.models_for(call.caller).find(name, version or None)

    async def _model_ready(self, call: Call) -> pb.ModelReadyResponse:
        model = self._find(call, call.message.name, call.message.version)
        return pb.ModelReadyResponse(ready=_is_ready(model))

    async def _server_metadata(self, call: Call) -> pb.ServerMetadataResponse:
        replicas = self.server.replicas
        if replicas.tag:  # the message has no place for them
            named = json.dumps(replicas.named())
            call.context.set_trailing_metadata(((REPLICAS, named),))
        return messages.server_metadata()

    async def _model_metadata(self, call: Call) -> pb.ModelMetadataResponse:
        model = self._find(call, call.message.name, call.message.version)
        about = model.spec.about(model.policy_name)  # the message has no place for it
        told = {**model.spec.input_limits(), "settings": model.settings()}
        texts = {name: metadata_text(value) for name, value in about.items()}
        texts |= {name: json.dumps(value) for name, value in told.items()}
        call.context.set_trailing_metadata(tuple(texts.items()))
        return messages.model_metadata(model.spec)

    async def _model_config(self, call: Call) -> pb.ModelConfigResponse:
        model = self._find(call, call.message.name, call.message.version)
        return messages.model_config(model.spec, model.policy_name)

    async def _model_statistics(self, call: Call) -> pb.ModelStatisticsResponse:
        name, version = call.message.name or None, call.message.version or None
        return messages.statistics(await self.server.statistics(call.caller, name, version))

    async def _repository_index(self, call: Call) -> pb.RepositoryIndexResponse:
        return messages.index(self._models.index(is_ready=call.message.ready))

    async def _model_infer(self, call: Call) -> pb.ModelInferResponse:
        message, version = call.message, call.message.model_version or None
        model = self._find(call, message.model_name, version)
        assert call.inflight is not None, "its message was read"
        owner = functools.partial(self._memory_owner, call)
        regions = self.server.memory.of(owner, call.inflight.take_or_refuse)
        request = messages.parse_infer(
            message, model.spec, max_json_bytes=self.server.max_json_bytes, regions=regions
        )
        self._guard.charge(call.caller, len(request.samples))
        if version is not None:
            request.parameters["subnet"] = version
        remaining_s = call.context.time_remaining()
        timeout_s = None if remaining_s is None else self._clock() - call.arrival_s + remaining_s
        replies = await model.infer(
            request,
            call.headers,
            arrival_s=call.arrival_s,
            call_timeout_s=timeout_s,
            request_id=call.request_id,
            tenant=call.caller.tenant,
        )
        return messages.build_response(
            request, model.spec, model.policy_name, replies, regions, self.server.replicas.tag
        )

    # --- shared memory ---------------------------------------------------------------------------

    async def _regions(self, call: Call) -> pb.SystemSharedMemoryStatusResponse:
        regions = self.server.regions(self._memory_owner(call), call.message.name)
        return messages.regions_status(regions)

    async def _register_region(self, call: Call) -> pb.SystemSharedMemoryRegisterResponse:
        asked, owner = call.message, self._memory_owner(call)
        region = {"key": asked.key, "offset": asked.offset, "byte_size": asked.byte_size}
        await self.server.register_region(owner, asked.name, region)
        return pb.SystemSharedMemoryRegisterResponse()

    async def _unregister_region(self, call: Call) -> pb.SystemSharedMemoryUnregisterResponse:
        await self.server.unregister_region(self._memory_owner(call), call.message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _no_regions(self, _: Call) -> pb.CudaSharedMemoryStatusResponse:
        return pb.CudaSharedMemoryStatusResponse()

    async def _no_regions_left(self, _: Call) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    def _memory_owner(self, call: Call) -> str:
        forwarded = call.headers.get("x-forwarded-for")
        return self._guard.memory_owner(call.caller, peer=call.peer, forwarded=forwarded)


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
        self,
        server: Any,
        port: int,
        own_port: int,
        address: str,
        drain_left_s: Callable[[], float],
    ) -> None:
        self._server = server
        self._drain_left_s = drain_left_s
        self.port = port
        self.own_port = own_port
        self.address = address

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
    has_own: bool | None = None,
    tls: TlsFiles | None = None,
) -> AsyncIterator[RpcPort]:
    """Serve `door` on a port from this event loop, yield the port; at the end, finish open calls.

    With the `host` `unix:PATH` that is a socket at `PATH.grpc`. Replicas on one host may share the
    port (`is_shared`); each then has one of its own besides, unless `has_own` is false. Connections
    older than `max_age_s` are told to go (GOAWAY); calls on them end first. Raises ServeConfigError
    for a taken port.
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

    def listen(on_port: int) -> int:
        address = _address(host, on_port)
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.rpc_credentials())

    try:
        bound_port = listen(port)
        own_port = listen(0) if (is_shared if has_own is None else has_own) else bound_port
    except RuntimeError:
        raise ServeConfigError(f"gRPC port {port} on {host} is not free: give another") from None
    await server.start()
    try:
        address = _address(host, bound_port)
        yield RpcPort(server, bound_port, own_port, address, door.server.drain_left_s)
    finally:
        await server.stop(door.server.drain_left_s())


def _address(host: str, port: int) -> str:
    """Return where gRPC listens: beside a UNIX socket of the HTTP door, at one of its own."""
    if host.startswith(UNIX):
        return f"{host}.grpc"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
