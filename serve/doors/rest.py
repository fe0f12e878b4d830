"""The HTTP door: an ASGI app that speaks the Open Inference Protocol V2.

The same app runs under uvicorn and inside a Ray Serve replica. Arrival is stamped when the server
hands us the request (its headers are parsed, its body is not read yet). Every refusal is a JSON
object with the protocol's `error` string and a machine-readable `reason`; statuses come from
`models/limits.py` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from serve.config import ServeConfigError, parse_live_config
from serve.doors import rest_messages
from serve.doors.request_id import RequestIds, naming, sent_id
from serve.doors.server import Server
from serve.models.limits import RefusedError
from serve.models.served_model import ServedModel
from serve.observe.metrics import CONTENT_TYPE
from serve.proto.names import BINARY_HEADER

logger = logging.getLogger(__name__)

ARRIVAL = "supernet.arrival_s"
REQUEST_ID = "supernet.request_id"
PRINCIPAL = "supernet.principal"
_OPEN = ""  # the scope of what needs no token
_ADMIN_BODY_BYTES = 64 * 2**10
_BODY_TIMEOUT_S = 30.0  # a client that writes byte by byte does not hold its connection for ever

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
        self._answer_infer = self._refusing(self._guarded(self._infer, "infer"))
        self._app = Starlette(routes=self._routes(), lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stamp the arrival, then route: what is asked all the time past the framework's layers.

        Those took a third of the processor's time that a request costs.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[ARRIVAL] = self._clock()
        request_id = scope[REQUEST_ID] = self._request_ids.give(sent_id(scope["headers"]))
        send = naming(_while_open(send), request_id)
        path_params = _infer_path(scope)
        if path_params is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = path_params
        answer = await self._answer_infer(Request(scope, receive))
        await answer(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self._models.start()
        try:
            async with self._while_ready():
                try:
                    yield
                finally:
                    await self.server.drain()  # while it listens: new requests get an answer
        finally:
            await self._models.stop()

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
            request.scope[PRINCIPAL] = self._guard.identify(
                scope,
                authorization=request.headers.get("authorization"),
                peer=request.client.host if request.client else "",
                origin=request.headers.get("origin"),
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
                return self._refuse(error)
            except Exception:  # the door's boundary: the client learns that it failed, the log why
                logger.exception("%s %s failed", request.method, request.url.path)
                text = "an internal error; the server's log has it"
                return self._refuse(RefusedError("internal", text))

        return answer

    def _refuse(self, error: RefusedError, request_id: str | None = None) -> Response:
        self.server.metrics.refused("http", error.reason)
        return _refusal(error, request_id)

    # --- inference -------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        model = self._find(request)
        principal = request.scope[PRINCIPAL]
        self._guard.admit(principal)
        body = await _read_body(request, self.server.max_body_bytes)
        binary_header = request.headers.get(BINARY_HEADER)
        content_type = request.headers.get("content-type", "")
        parsed = rest_messages.parse_infer(body, binary_header, model.spec, content_type)
        self._guard.charge(principal, len(parsed.samples))
        if "version" in request.path_params:
            parsed.parameters["subnet"] = request.path_params["version"]
        scope = request.scope
        inferring = model.infer(
            parsed, request.headers, arrival_s=scope[ARRIVAL], request_id=scope[REQUEST_ID]
        )
        try:
            replies = await _unless_disconnected(request, inferring)
        except RefusedError as error:
            return self._refuse(error, parsed.request_id)
        policy = model.policy_name
        answer, json_length = rest_messages.build_response(parsed, model.spec, policy, replies)
        if json_length is None:
            return Response(answer, media_type="application/json")
        return Response(
            answer,
            media_type="application/octet-stream",
            headers={BINARY_HEADER: str(json_length)},
        )

    def _find(self, request: Request) -> ServedModel:
        parameters = request.path_params
        return self._models.find(parameters["model"], parameters.get("version"))

    # --- looking ---------------------------------------------------------------------------------

    async def _server(self, _: Request) -> Response:
        return JSONResponse(rest_messages.server_metadata(self._models.names))

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
        body = await _read_body(request, _ADMIN_BODY_BYTES)
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
        body = await _read_body(request, _ADMIN_BODY_BYTES)
        try:
            fields = json.loads(body)
            name = fields.pop("model", None) if isinstance(fields, dict) else None
            change = parse_live_config(fields)
            if name is None:
                settings = self._models.reconfigure(change)
            else:
                settings = {name: self._models.find(name).reconfigure(change)}
        except ServeConfigError as error:
            raise RefusedError("bad_request", str(error)) from None
        except ValueError as error:
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


def _refusal(error: RefusedError, request_id: str | None = None) -> Response:
    headers: dict[str, str] = {}
    if error.retry_after_s:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))  # whole seconds only
    if error.reason == "unauthenticated":
        headers["www-authenticate"] = "Bearer"
    if error.reason in ("too_large", "too_slow", "unauthenticated"):
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(
        rest_messages.build_error(error, request_id),
        status_code=error.http_status,
        media_type="application/json",
        headers=headers,
    )


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body, refusing it before it is read whole when it is larger than allowed."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(size, max_bytes)
                chunks.append(chunk)
    except ClientDisconnect:
        raise RefusedError("cancelled", "the client has gone", status="dropped") from None
    except TimeoutError:
        text = f"{size} bytes of the body arrived within {_BODY_TIMEOUT_S:g} s, and not its end"
        raise RefusedError("too_slow", text) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(size: int, max_bytes: int) -> RefusedError:
    return RefusedError(
        "too_large", f"the body has {size} bytes or more, allowed {max_bytes} (max_body_bytes)"
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
