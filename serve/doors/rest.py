"""The HTTP door: an ASGI app that speaks the Open Inference Protocol V2.

The same app runs under uvicorn and inside a Ray Serve replica. A request arrives with its first
byte, where the listener says when that was, else when the server hands it to us; what the event
loop kept waiting counts either way (`observe/loop_lag.py`). Every refusal is a JSON object with the
protocol's `error` string and a machine-readable `reason`; statuses come from `models/limits.py`
alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from serve.access.guard import Caller
from serve.config import ServeConfigError, parse_live_config
from serve.doors import rest_messages
from serve.doors.body_budget import InflightBody
from serve.doors.json_bounds import check_begun
from serve.doors.parse_turn import ParseTurn
from serve.doors.request_body import read_body
from serve.doors.request_id import RequestIds, naming, sent_id
from serve.doors.server import Server
from serve.models.limits import RefusedError
from serve.models.request import InferRequest, bad
from serve.models.served_model import ServedModel
from serve.observe.metrics import CONTENT_TYPE
from serve.proto.names import BINARY_HEADER

logger = logging.getLogger(__name__)

ARRIVAL = "supernet.arrival_s"
REQUEST_ID = "supernet.request_id"
CALLER = "supernet.caller"
FIRST_BYTE = "supernet.first_byte_s"
"""When a request's first byte was there, on `time.monotonic`; a listener of ours puts it there."""
_OPEN = ""  # the scope of what needs no token
_ADMIN_BODY_BYTES = 64 * 2**10

_IS_READ = "supernet.is_read"
_READ_ON_BYTES = 64 * 2**10  # of a body that is not wanted, to keep its connection
_ELSEWHERE = ("device_failed", "draining", "not_ready")  # another server may: over a new connection
_CLOSING = frozenset(("too_large", "too_slow", "unauthenticated", *_ELSEWHERE))
_NOBODY = Caller()

Handler = Callable[[Request], Awaitable[Response]]


class RestDoor:
    """The ASGI app over the served models; the host drains and stops their engines."""

    def __init__(
        self,
        server: Server,
        *,
        while_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]] = (
            contextlib.nullcontext
        ),
    ) -> None:
        """`while_ready` is entered between warm-up and drain."""
        self.server = server
        self._models = server.models
        self._guard = server.guard
        self._while_ready = while_ready
        self._clock = server.models.clock
        self._request_ids = RequestIds()
        self._parse_turn = ParseTurn()
        self._answer_infer = self._refusing(self._guarded(self._infer, "infer"))
        self._app = Starlette(routes=self._routes(), lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stamp the arrival, then route: what is asked all the time past the framework's layers.

        Those took a third of the processor's time that a request costs.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[ARRIVAL] = self._clock() - self._waited_s(scope)
        request_id = scope[REQUEST_ID] = self._request_ids.give(sent_id(scope["headers"]))
        send = naming(_while_open(send), request_id)
        path_params = _infer_path(scope)
        if path_params is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = path_params
        answer = await self._answer_infer(Request(scope, receive))
        await answer(scope, receive, send)

    def _waited_s(self, scope: Scope) -> float:
        first_byte_s = scope.get(FIRST_BYTE)
        if first_byte_s is None:
            return self.server.loop_lag.now_s()
        return max(0.0, time.monotonic() - first_byte_s)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self._models.start()
        try:
            with self.server.loop_lag.running():
                async with self._while_ready():
                    try:
                        yield
                    finally:
                        await self.server.drain()  # while it listens: new requests get an answer
        finally:
            await self._models.stop()

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Return the lifespan as a context, for who runs the app without an ASGI server."""
        return self._lifespan(self._app)

    def _routes(self) -> list[Route]:
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        routes: list[tuple[str, Handler, str, str]] = [
            ("/v2", self._server, "GET", "infer"),
            ("/v2/health/live", self._live, "GET", _OPEN),
            ("/v2/health/ready", self._ready, "GET", _OPEN),
            ("/v2/models/stats", self._all_statistics, "GET", "infer"),
            ("/v2/repository/index", self._index, "POST", "infer"),
            ("/metrics", self._render_metrics, "GET", "metrics"),
            ("/admin/config", self._show_config, "GET", "admin"),
            ("/admin/config", self._change_config, "POST", "admin"),
        ]
        for prefix in (model, version):
            routes += [
                (prefix, self._model, "GET", "infer"),
                (f"{prefix}/ready", self._model_ready, "GET", "infer"),
                (f"{prefix}/config", self._model_config, "GET", "infer"),
                (f"{prefix}/stats", self._statistics, "GET", "infer"),
                (f"{prefix}/infer", self._infer, "POST", "infer"),
            ]
        return [
            Route(path, self._refusing(self._guarded(handle, scope)), methods=[verb])
            for path, handle, verb, scope in routes
        ]

    def _guarded(self, handle: Handler, scope: str) -> Handler:
        """Wrap a handler so that only those get to it whom the guard lets into `scope`."""
        if scope == _OPEN:
            return handle

        @functools.wraps(handle)
        async def answer(request: Request) -> Response:
            headers, tenant_header = request.headers, self._guard.tenant_header
            request.scope[CALLER] = self._guard.identify(
                scope,
                authorization=headers.get("authorization"),
                peer=request.client.host if request.client else "",
                origin=headers.get("origin"),
                forwarded=",".join(headers.getlist("x-forwarded-for")) or None,
                host=headers.get("host"),
                tenant=None if tenant_header is None else headers.get(tenant_header),
            )
            return await handle(request)

        return answer

    def _refusing(self, handle: Handler) -> Handler:
        """Wrap a handler so that every refusal and every bug of ours becomes a JSON answer."""

        @functools.wraps(handle)
        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RefusedError as error:
                return self._refuse(request, error)
            except Exception:  # the door's boundary: the client learns that it failed, the log why
                logger.exception("%s %s failed", request.method, request.url.path)
                text = "an internal error; the server's log has it"
                return self._refuse(request, RefusedError("internal", text))

        return answer

    def _refuse(
        self, request: Request, error: RefusedError, request_id: str | None = None
    ) -> Response:
        caller: Caller = request.scope.get(CALLER, _NOBODY)
        self.server.metrics.refused("http", error.reason, caller.tenant.name)
        is_closing = error.reason in _CLOSING or not _is_kept(request)
        return _refusal(error, request_id, is_closing=is_closing)

    # --- inference -------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        model = self._find(request)
        self._guard.admit(request.scope[CALLER])
        async with self.server.budget.body() as inflight:
            return await self._infer_whole(request, model, inflight)

    async def _infer_whole(
        self, request: Request, model: ServedModel, inflight: InflightBody
    ) -> Response:
        scope = request.scope
        caller: Caller = scope[CALLER]
        parsed = await self._parse(request, model, inflight)
        self._guard.charge(caller, len(parsed.samples))
        if "version" in request.path_params:
            parsed.parameters["subnet"] = request.path_params["version"]
        inferring = model.infer(
            parsed,
            request.headers,
            arrival_s=scope[ARRIVAL],
            request_id=scope[REQUEST_ID],
            tenant=caller.tenant,
        )
        try:
            replies = await _unless_disconnected(request, inferring)
        except RefusedError as error:
            return self._refuse(request, error, parsed.request_id)
        answer, json_length = rest_messages.build_response(
            parsed, model.spec, model.policy_name, replies, self.server.replicas.tag
        )
        if json_length is None:
            return Response(answer, media_type="application/json")
        return Response(
            answer,
            media_type="application/octet-stream",
            headers={BINARY_HEADER: str(json_length)},
        )

    async def _parse(
        self, request: Request, model: ServedModel, inflight: InflightBody
    ) -> InferRequest:
        headers, max_json_bytes = request.headers, self.server.max_json_bytes
        form = rest_messages.BodyForm(headers.get("content-type", ""), headers.get(BINARY_HEADER))
        body = await read_body(
            request,
            self.server.max_body_bytes,
            inflight,
            check_after_bytes=max_json_bytes if form.is_json else None,
            check=functools.partial(check_begun, max_bytes=max_json_bytes),
        )
        request.scope[_IS_READ] = True
        async with self._parse_turn.of(form.json_length(body)):
            return rest_messages.parse_infer(body, form, model.spec, max_json_bytes=max_json_bytes)

    def _find(self, request: Request) -> ServedModel:
        parameters = request.path_params
        return self._models.find(parameters["model"], parameters.get("version"))

    # --- looking ---------------------------------------------------------------------------------

    async def _server(self, _: Request) -> Response:
        replicas = self.server.replicas
        named = replicas.named() if replicas.tag else None
        return JSONResponse(rest_messages.server_metadata(self._models.names, named))

    async def _live(self, _: Request) -> Response:
        fault = self._models.fault()
        return JSONResponse({"live": not fault}, status_code=503 if fault else 200)

    async def _ready(self, _: Request) -> Response:
        self._models.check_ready()
        return JSONResponse({"ready": True})

    async def _model(self, request: Request) -> Response:
        model = self._find(request)
        metadata = rest_messages.model_metadata(model.spec, model.policy_name, model.settings())
        return JSONResponse(metadata)

    async def _model_ready(self, request: Request) -> Response:
        model = self._find(request)
        model.check_ready()
        return JSONResponse({"name": model.spec.name, "ready": True})

    async def _model_config(self, request: Request) -> Response:
        model = self._find(request)
        return JSONResponse(rest_messages.model_config(model.spec, model.policy_name))

    async def _index(self, request: Request) -> Response:
        async with self.server.budget.body() as inflight:
            body = await read_body(request, _ADMIN_BODY_BYTES, inflight)
        try:
            fields = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise RefusedError("bad_request", "the request is not JSON") from None
        is_ready = isinstance(fields, dict) and fields.get("ready") is True
        return JSONResponse(self._models.index(is_ready=is_ready))

    async def _statistics(self, request: Request) -> Response:
        model = self._find(request)
        rows = model.statistics.rows(model.spec.name, request.path_params.get("version"))
        return JSONResponse({"model_stats": rows})

    async def _all_statistics(self, _: Request) -> Response:
        rows = [row for model in self._models for row in model.statistics.rows(model.spec.name)]
        return JSONResponse({"model_stats": rows})

    async def _render_metrics(self, _: Request) -> Response:
        self.server.refresh_metrics()
        return Response(self.server.metrics.render(), media_type=CONTENT_TYPE)

    # --- control ---------------------------------------------------------------------------------

    async def _show_config(self, _: Request) -> Response:
        return JSONResponse({m.spec.name: m.live_settings() for m in self._models})

    async def _change_config(self, request: Request) -> Response:
        async with self.server.budget.body() as inflight:
            body = await read_body(request, _ADMIN_BODY_BYTES, inflight)
        try:
            fields = json.loads(body)
            name, is_for_one = None, False
            if isinstance(fields, dict):
                name = fields.pop("model", None)
                is_for_one = fields.pop("only_this_replica", False) is True
            if not is_for_one:
                self.server.check_alone()
            if name is not None and not isinstance(name, str):
                raise bad("bad_request", "model", name, "the name of a model")
            change = parse_live_config(fields)
            if name is None:
                settings = self._models.reconfigure(change)
            else:
                settings = {name: self._models.find(name).reconfigure(change)}
        except ServeConfigError as error:
            raise RefusedError("bad_request", str(error)) from None
        except (ValueError, RecursionError) as error:
            raise RefusedError("bad_request", f"the request is not JSON: {error}") from None
        return JSONResponse(settings)


def _infer_path(scope: Scope) -> dict[str, str] | None:
    """Return the path parameters of an inference request, None for any other.

    Below a prefix (`root_path`) none is recognised, and the router finds it.
    """
    if scope["method"] != "POST" or scope.get("root_path"):
        return None
    match scope["path"].split("/"):
        case ["", "v2", "models", model, "infer"] if model:
            return {"model": model}
        case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return {"model": model, "version": version}
        case _:
            return None


def _while_open(send: Send) -> Send:
    """Return `send` without the error that uvloop raises for a connection that is closed.

    The client of a pipelined request may have gone before it is begun, and uvicorn does not say so;
    a storm of them would write a traceback each.
    """

    async def send_while_open(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            if "the handler is closed" not in str(error):
                raise

    return send_while_open


def _is_kept(request: Request) -> bool:
    """Whether what is unread of a request is short enough to keep its connection."""
    if _IS_READ in request.scope:
        return True
    length = request.headers.get("content-length", "0")
    is_short = length.isdigit() and int(length) <= _READ_ON_BYTES
    return is_short and "transfer-encoding" not in request.headers


def _refusal(error: RefusedError, request_id: str | None, *, is_closing: bool) -> Response:
    headers: dict[str, str] = {}
    if error.retry_after_s:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))  # whole seconds only
    if error.reason == "unauthenticated":
        headers["www-authenticate"] = "Bearer"
    if is_closing:
        headers["connection"] = "close"
    return Response(
        rest_messages.build_error(error, request_id),
        status_code=error.http_status,
        media_type="application/json",
        headers=headers,
    )


async def _unless_disconnected(request: Request, work: Awaitable[Any]) -> Any:
    """Await `work`, cancelling it when the client goes away meanwhile."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    has_gone = False

    def cancel(watch: asyncio.Future[None]) -> None:
        nonlocal has_gone
        if not watch.cancelled() and not is_over:
            has_gone = True
            task.cancel()

    is_over = False
    watch = asyncio.ensure_future(_disconnected(request))
    watch.add_done_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if not has_gone:
            raise
        task.uncancel()
        raise RefusedError("cancelled", "the client has gone", status="dropped") from None
    finally:
        is_over = True
        watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
