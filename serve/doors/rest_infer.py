"""`RestInference`: what an inference request meets over HTTP, past the framework's layers.

Those took a third of the processor's time that a request costs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from serve.access.guard import Caller
from serve.doors import rest_messages
from serve.doors.body_budget import InflightBody
from serve.doors.headers import check_not_encoded, joined
from serve.doors.http_answer import HttpAnswer, refusal
from serve.doors.json_bounds import check_begun
from serve.doors.parse_turn import SMALL_BYTES, ParseTurn
from serve.doors.request_body import check_size, read_body
from serve.doors.server import Server
from serve.models.limits import RefusedError
from serve.models.request import InferRequest
from serve.models.served_model import ServedModel
from serve.proto.names import BINARY_HEADER

logger = logging.getLogger(__name__)

WHOLE = "supernet.is_whole"
"""In the scope of a request whose body has come; a listener of ours says so."""
WHEN_GONE = "supernet.when_gone"
"""In the scope: has a function called when the client goes away, returns what takes that back."""

_READ_ON_BYTES = 64 * 2**10  # of a body that is not wanted, to keep its connection
_ELSEWHERE = (  # another server may: over a new connection
    "device_failed", "draining", "not_ready",
)  # fmt: skip
_CLOSING = frozenset(("too_large", "too_slow", "unauthenticated", *_ELSEWHERE))
_NOBODY = Caller()
_BINARY = b"application/octet-stream"
_BINARY_HEADER = BINARY_HEADER.encode()


class HttpCall:
    """One request: its scope, its headers, when its first byte was there, who calls."""

    __slots__ = ("arrival_s", "caller", "headers", "is_read", "receive", "request_id", "scope")

    def __init__(self, scope: Scope, receive: Receive, arrival_s: float, request_id: str) -> None:
        self.scope = scope
        self.receive = receive
        self.arrival_s = arrival_s
        self.request_id = request_id
        self.headers = joined(scope["headers"])
        self.caller = _NOBODY
        self.is_read = False

    @property
    def peer(self) -> str:
        """The address of the other end of the connection."""
        client = self.scope.get("client")
        return client[0] if client else ""

    def is_kept(self) -> bool:
        """Whether what is unread of the request is short enough to keep its connection."""
        if self.is_read or WHOLE in self.scope:
            return True
        length = self.headers.get("content-length", "0")
        is_short = length.isdigit() and int(length) <= _READ_ON_BYTES
        return is_short and "transfer-encoding" not in self.headers


class RestInference:
    """Answers inference requests of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._guard = server.guard
        self._parse_turn = ParseTurn()

    async def answer(
        self, call: HttpCall, send: Send, model_name: str, version: str | None
    ) -> None:
        """Answer a request for a model, or for one subnet of it (`version`)."""
        try:
            answer = await self._infer(call, model_name, version)
        except RefusedError as error:
            answer = self.refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("POST %s failed", call.scope["path"])
            text = "an internal error; the server's log has it"
            answer = self.refuse(call, RefusedError("internal", text))
        await answer.send(call.scope, send, call.request_id)

    def refuse(
        self, call: HttpCall, error: RefusedError, client_id: str | None = None
    ) -> HttpAnswer:
        """Count a refusal and return the answer that it is."""
        self._server.metrics.refused("http", error.reason, call.caller.tenant.name)
        is_closing = error.reason in _CLOSING or not call.is_kept()
        return refusal(error, client_id, is_closing=is_closing)

    async def _infer(self, call: HttpCall, model_name: str, version: str | None) -> HttpAnswer:
        call.caller = identify(self._guard, call, "infer")
        model = self._server.models_for(call.caller).find(model_name, version)
        self._guard.admit(call.caller)
        model.check_waited(
            call.headers,
            arrival_s=call.arrival_s,
            request_id=call.request_id,
            tenant=call.caller.tenant,
        )
        inflight = self._server.budget.body()
        try:
            return await self._infer_whole(call, model, version, inflight)
        finally:
            inflight.release()

    async def _infer_whole(
        self, call: HttpCall, model: ServedModel, version: str | None, inflight: InflightBody
    ) -> HttpAnswer:
        owner = functools.partial(memory_owner, self._guard, call)
        regions = self._server.memory.of(owner, inflight.take_or_refuse)
        parsed = await self._parse(call, model, inflight, regions)
        self._guard.charge(call.caller, len(parsed.samples))
        if version is not None:
            parsed.parameters["subnet"] = version
        inferring = model.infer(
            parsed,
            call.headers,
            arrival_s=call.arrival_s,
            request_id=call.request_id,
            tenant=call.caller.tenant,
        )
        try:
            replies = await _unless_gone(call, inferring)
            policy = model.policy_name
            body, json_length = rest_messages.build_response(
                parsed, model.spec, policy, replies, regions, self._server.replicas.tag
            )
        except RefusedError as error:
            return self.refuse(call, error, parsed.request_id)
        if json_length is None:
            return HttpAnswer(200, body)
        return HttpAnswer(200, body, _BINARY, ((_BINARY_HEADER, b"%d" % json_length),))

    async def _parse(
        self, call: HttpCall, model: ServedModel, inflight: InflightBody, regions: Any
    ) -> InferRequest:
        headers, max_json_bytes = call.headers, self._server.max_json_bytes
        check_not_encoded(headers.get("content-encoding"))
        form = rest_messages.BodyForm(headers.get("content-type", ""), headers.get(BINARY_HEADER))
        body = await self._body(call, form, inflight)
        call.is_read = True
        length = form.json_length(body)
        parse = functools.partial(
            rest_messages.parse_infer,
            body,
            form,
            model.spec,
            max_json_bytes=max_json_bytes,
            regions=regions,
        )
        if length <= SMALL_BYTES:
            return parse()
        async with self._parse_turn.of(length):
            return parse()

    async def _body(
        self, call: HttpCall, form: rest_messages.BodyForm, inflight: InflightBody
    ) -> bytes:
        max_bytes, max_json_bytes = self._server.max_body_bytes, self._server.max_json_bytes
        check_size(call.headers.get("content-length", ""), max_bytes)
        receive = call.receive
        if WHOLE in call.scope:
            message = await call.receive()
            body: bytes = message.get("body", b"")
            if inflight.take_at_once(len(body)):
                check_size(str(len(body)), max_bytes)
                return body
            receive = _once(message)
        return await read_body(
            receive,
            max_bytes,
            inflight,
            check_after_bytes=max_json_bytes if form.is_json else None,
            check=functools.partial(check_begun, max_bytes=max_json_bytes),
        )


def identify(guard: Any, call: HttpCall, scope: str) -> Caller:
    """Return who calls. Raises RefusedError."""
    headers, tenant_header = call.headers, guard.tenant_header
    return guard.identify(
        scope,
        authorization=headers.get("authorization"),
        peer=call.peer,
        origin=headers.get("origin"),
        forwarded=headers.get("x-forwarded-for"),
        host=headers.get("host"),
        tenant=None if tenant_header is None else headers.get(tenant_header),
    )


def memory_owner(guard: Any, call: HttpCall) -> str:
    """Return whose regions of shared memory the caller's are. Raises RefusedError."""
    forwarded = call.headers.get("x-forwarded-for")
    return guard.memory_owner(call.caller, peer=call.peer, forwarded=forwarded)


def _once(message: Mapping[str, Any]) -> Receive:
    """Return a `receive` of what has been received already."""

    async def receive() -> Any:
        return message

    return receive


async def _unless_gone(call: HttpCall, work: Awaitable[Any]) -> Any:
    """Await `work`, cancelling it when the client goes away meanwhile."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    has_gone = is_over = False

    def cancel() -> None:
        nonlocal has_gone
        if not is_over:
            has_gone = True
            task.cancel()

    stop_watching = _watch(call, cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if not has_gone:
            raise
        task.uncancel()
        raise RefusedError("cancelled", "the client has gone", status="dropped") from None
    finally:
        is_over = True
        stop_watching()


def _watch(call: HttpCall, when_gone: Callable[[], None]) -> Callable[[], object]:
    """Have `when_gone` called when the client goes; return what ends that.

    A listener of ours says so itself; any other is asked, by a task for each request.
    """
    listener = call.scope.get(WHEN_GONE)
    if listener is not None:
        return listener(when_gone)

    def told(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            when_gone()

    watch = asyncio.ensure_future(_disconnected(call.receive))
    watch.add_done_callback(told)
    return watch.cancel


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
