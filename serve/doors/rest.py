"""The HTTP door: an ASGI app that speaks the Open Inference Protocol V2.

The same app runs under uvicorn and inside a Ray Serve replica. A request arrives with its first
byte, where the listener says when that was, else when the server hands it to us; what the event
loop kept waiting counts either way (`observe/loop_lag.py`). Every refusal, of whichever path and
method, is a JSON object with the protocol's `error` string and a machine-readable `reason`;
statuses come from `models/limits.py` alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from serve.doors import rest_messages
from serve.doors.headers import check_not_encoded
from serve.doors.http_answer import Respond, naming
from serve.doors.http_call import HttpCall, HttpCalls, inference_path
from serve.doors.request_body import check_size, read_body
from serve.doors.rest_infer import RestInference
from serve.doors.server import Server
from serve.models.limits import RefusedError
from serve.models.request import bad
from serve.models.served_model import ServedModel
from serve.observe.metrics import CONTENT_TYPE

logger = logging.getLogger(__name__)

CALL = "supernet.call"
_OPEN = ""  # the scope of what needs no token
_MEMORY, _CUDA_MEMORY = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
_SMALL_BODY_BYTES = 64 * 2**10  # of what is no inference

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
        self._calls = HttpCalls(server.models.clock, server.loop_lag.now_s)
        self._inference = RestInference(server)
        self._app = Starlette(
            routes=self._routes(),
            lifespan=self._lifespan,
            exception_handlers={HTTPException: self._refuse_route},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stamp the arrival, then route: what is asked all the time by the short way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = self._calls.call(scope, receive)
        path = inference_path(scope)
        if path is not None:
            await self._inference.answer(call, send, *path)
            return
        scope[CALL] = call
        await self._app(scope, receive, naming(send, call.request_id))

    def answer_at_once(
        self, scope: Scope, receive: Receive, body: bytes | bytearray, respond: Respond
    ) -> bool:
        """Answer an inference request that has come whole; return whether it was one.

        Any other is for the app.
        """
        path = inference_path(scope)
        if path is None or self.server.security is not None:  # its answers wait for the grid
            return False
        self._inference.answer_at_once(self._calls.call(scope, receive), body, respond, *path)
        return True

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
            ("/admin/audit", self._may_audit, "GET", "audit"),
            ("/admin/config", self._show_config, "GET", "admin"),
            ("/admin/config", self._change_config, "POST", "admin"),
            (f"{_MEMORY}/status", self._regions, "GET", "infer"),
            (f"{_MEMORY}/region/{{name}}/status", self._regions, "GET", "infer"),
            (f"{_MEMORY}/region/{{name}}/register", self._register_region, "POST", "infer"),
            (f"{_MEMORY}/unregister", self._unregister_region, "POST", "infer"),
            (f"{_MEMORY}/region/{{name}}/unregister", self._unregister_region, "POST", "infer"),
            (f"{_CUDA_MEMORY}/status", self._no_regions, "GET", "infer"),
            (f"{_CUDA_MEMORY}/unregister", self._no_regions, "POST", "infer"),
        ]
        for prefix in (model, version):
            routes += [
                (prefix, self._model, "GET", "infer"),
                (f"{prefix}/ready", self._model_ready, "GET", "infer"),
                (f"{prefix}/config", self._model_config, "GET", "infer"),
                (f"{prefix}/stats", self._statistics, "GET", "infer"),
                (f"{prefix}/infer", self._infer, "POST", _OPEN),  # where a prefix hides it
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
            call = _call_of(request)
            call.caller = call.identify(self._guard, scope)
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

    def _refuse(self, request: Request, error: RefusedError) -> Response:
        answer = self._inference.refuse(_call_of(request), error)
        response = Response(answer.body, answer.status, media_type=answer.content_type.decode())
        response.raw_headers += answer.headers
        return response

    async def _refuse_route(self, request: Request, error: Exception) -> Response:
        """Say in the protocol's form that a path, or a method on it, is not served."""
        assert isinstance(error, HTTPException), "registered for those"
        method, path = request.method, request.url.path
        if error.status_code == 405:
            matching = (r for r in self._app.routes if isinstance(r, Route))
            methods = {
                name
                for route in matching
                if route.matches(request.scope)[0] is not Match.NONE
                for name in route.methods or ()
            }
            allowed = ", ".join(sorted(methods))
            text = f"{method:.80} is not served at {path:.200}, allowed {allowed}"
            response = self._refuse(request, RefusedError("method_not_allowed", text))
            response.headers["allow"] = allowed
            return response
        text = f"{path:.200} is not served here; docs/reference.md lists what is"
        return self._refuse(request, RefusedError("unknown_path", text))

    async def _infer(self, request: Request) -> Response:
        """Answer below a prefix (`root_path`), where the short way does not recognise it."""
        parameters, call = request.path_params, _call_of(request)
        return _Sent(self._inference, call, parameters["model"], parameters.get("version"))

    def _find(self, request: Request) -> ServedModel:
        parameters = request.path_params
        models = self.server.models_for(_call_of(request).caller)
        return models.find(parameters["model"], parameters.get("version"))

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
        name = request.path_params["model"]
        if "version" in request.path_params:
            self._find(request)
        self._models.check_model_ready(name)
        return JSONResponse({"name": name, "ready": True})

    async def _model_config(self, request: Request) -> Response:
        model = self._find(request)
        return JSONResponse(rest_messages.model_config(model.spec, model.policy_name))

    async def _index(self, request: Request) -> Response:
        fields = await self._json(request, default={})
        is_ready = isinstance(fields, dict) and fields.get("ready") is True
        return JSONResponse(self._models.index(is_ready=is_ready))

    async def _statistics(self, request: Request) -> Response:
        asked = request.path_params
        caller = _call_of(request).caller
        rows = await self.server.statistics(caller, asked["model"], asked.get("version"))
        return JSONResponse({"model_stats": rows})

    async def _all_statistics(self, request: Request) -> Response:
        rows = await self.server.statistics(_call_of(request).caller)
        return JSONResponse({"model_stats": rows})

    async def _render_metrics(self, request: Request) -> Response:
        text = await self.server.render_metrics(_call_of(request).caller)
        return Response(text, media_type=CONTENT_TYPE)

    # --- control ---------------------------------------------------------------------------------

    async def _may_audit(self, _: Request) -> Response:
        """Say that the caller may audit this server, and whether it hides its choice."""
        return JSONResponse({"security": self.server.security is not None})

    async def _show_config(self, _: Request) -> Response:
        return JSONResponse(await self.server.live_settings())

    async def _change_config(self, request: Request) -> Response:
        return JSONResponse(await self.server.change_settings(await self._json(request)))

    # --- shared memory ---------------------------------------------------------------------------

    async def _regions(self, request: Request) -> Response:
        name = request.path_params.get("name", "")
        regions = self.server.regions(self._memory_owner(request), name)
        return JSONResponse([region._asdict() for region in regions])

    async def _register_region(self, request: Request) -> Response:
        owner, fields = self._memory_owner(request), await self._json(request)
        if not isinstance(fields, dict):
            raise bad("bad_request", "the request", fields, "an object: key, offset, byte_size")
        await self.server.register_region(owner, request.path_params["name"], fields)
        return JSONResponse({})

    async def _unregister_region(self, request: Request) -> Response:
        name = request.path_params.get("name", "")
        await self.server.unregister_region(self._memory_owner(request), name)
        return JSONResponse({})

    async def _no_regions(self, request: Request) -> Response:
        """Answer clients that look for, or forget, memory of a CUDA device: there is none."""
        return JSONResponse([] if request.method == "GET" else {})

    def _memory_owner(self, request: Request) -> str:
        return _call_of(request).memory_owner(self._guard)

    async def _json(self, request: Request, default: Any = None) -> Any:
        """Return the JSON of a short body. Raises RefusedError."""
        headers = request.headers
        check_not_encoded(headers.get("content-encoding"))
        check_size(headers.get("content-length", ""), _SMALL_BODY_BYTES)
        async with self.server.budget.body() as inflight:
            body = await read_body(request.receive, _SMALL_BODY_BYTES, inflight)
        _call_of(request).is_read = True
        if not body and default is not None:
            return default
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RefusedError("bad_request", f"the request is not JSON: {error}") from None


def _call_of(request: Request) -> HttpCall:
    return request.scope[CALL]


class _Sent(Response):
    """An answer that the short way sends."""

    def __init__(
        self, inference: RestInference, call: HttpCall, model: str, version: str | None
    ) -> None:
        super().__init__()
        self._parts = inference, call, model, version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inference, call, model, version = self._parts
        await inference.answer(call, send, model, version)
