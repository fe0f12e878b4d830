"""The HTTP door: an ASGI app that speaks the Open Inference Protocol V2.

The same app runs under uvicorn and inside a Ray Serve replica. Arrival is stamped when the server
hands us the request (its headers are parsed, its body is not read yet). Every refusal is a JSON
object with the protocol's `error` string and a machine-readable `reason`; statuses come from
`serve.limits.REASONS` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serve import oip
from serve.config import ConfigError, parse_live_config
from serve.limits import RefusedError
from serve.metrics import CONTENT_TYPE, Metrics
from serve.model import ServedModel

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
ARRIVAL = "supernet.arrival_s"
_ADMIN_BODY_BYTES = 64 * 2**10

Handler = Callable[[Request], Awaitable[Response]]


class Door:
    """The ASGI app over the served models; the host drains and stops their engines."""

    def __init__(
        self,
        models: dict[str, ServedModel],
        metrics: Metrics,
        *,
        max_body_bytes: int,
        admin_token: str | None = None,
        drain_timeout_s: float = 10.0,
    ) -> None:
        self.models = models
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._admin_token = admin_token
        self._drain_timeout_s = drain_timeout_s
        self.while_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]]
        self.while_ready = contextlib.nullcontext  # entered between warm-up and drain
        self._clock = next(iter(models.values())).engine.clock
        self._app = Starlette(routes=self._routes(), lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stamp the arrival, then route."""
        if scope["type"] == "http":
            scope[ARRIVAL] = self._clock()
        await self._app(scope, receive, send)

    async def drain(self) -> bool:
        """Refuse new queries and finish the queued ones; return whether all ended in time."""
        engines = [model.engine for model in self.models.values()]
        drained = await asyncio.gather(*(e.drain(self._drain_timeout_s) for e in engines))
        return all(drained)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        engines = [model.engine for model in self.models.values()]
        for engine in engines:
            await engine.start()
        try:
            async with self.while_ready():
                yield
        finally:
            await self.drain()
            for engine in engines:
                await engine.stop()

    def _routes(self) -> list[Route]:
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        routes: list[tuple[str, Handler, str]] = [
            ("/v2", self._server, "GET"),
            ("/v2/health/live", self._live, "GET"),
            ("/v2/health/ready", self._ready, "GET"),
            ("/metrics", self._render_metrics, "GET"),
            ("/admin/config", self._show_config, "GET"),
            ("/admin/config", self._change_config, "POST"),
        ]
        for prefix in (model, version):
            routes += [
                (prefix, self._model, "GET"),
                (f"{prefix}/ready", self._model_ready, "GET"),
                (f"{prefix}/infer", self._infer, "POST"),
            ]
        return [Route(path, _refusing(handle), methods=[verb]) for path, handle, verb in routes]

    # --- inference -------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        model = self._find(request)
        body = await _read_body(request, self._max_body_bytes)
        binary_header = request.headers.get(oip.BINARY_HEADER)
        parsed = oip.parse_infer(body, binary_header, model.spec)
        if "version" in request.path_params:
            parsed.parameters["subnet"] = request.path_params["version"]
        try:
            replies = await _unless_disconnected(
                request,
                model.infer(parsed, request.headers, arrival_s=request.scope[ARRIVAL]),
            )
        except RefusedError as error:
            return _refuse(error, parsed.request_id)
        policy = model.engine.policy_name
        answer, json_length = oip.build_response(parsed, model.spec, policy, replies)
        if json_length is None:
            return Response(answer, media_type="application/json")
        return Response(
            answer,
            media_type="application/octet-stream",
            headers={oip.BINARY_HEADER: str(json_length)},
        )

    def _find(self, request: Request) -> ServedModel:
        name = request.path_params["model"]
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models)
            raise RefusedError("unknown_model", f"model {name!r} is not served; served: {known}")
        version = request.path_params.get("version")
        if version is not None and version not in model.spec.subnet_ids:
            known = ", ".join(model.spec.subnet_ids)
            raise RefusedError("unknown_model", f"{name!r} has no version {version!r}; has {known}")
        return model

    # --- looking ---------------------------------------------------------------------------------

    async def _server(self, _: Request) -> Response:
        return JSONResponse(oip.server_metadata(VERSION, self.models))

    async def _live(self, _: Request) -> Response:
        faults = [model.engine.status().fault for model in self.models.values()]
        return JSONResponse({"live": not any(faults)}, status_code=503 if any(faults) else 200)

    async def _ready(self, _: Request) -> Response:
        for model in self.models.values():
            model.check_ready()
        return JSONResponse({"ready": True})

    async def _model(self, request: Request) -> Response:
        model = self._find(request)
        return JSONResponse(oip.model_metadata(model.spec, model.engine.policy_name))

    async def _model_ready(self, request: Request) -> Response:
        model = self._find(request)
        model.check_ready()
        return JSONResponse({"name": model.spec.name, "ready": True})

    async def _render_metrics(self, _: Request) -> Response:
        for name, model in self.models.items():
            self._metrics.set_queue_depth(name, model.engine.status().queue_depth)
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    # --- control ---------------------------------------------------------------------------------

    async def _show_config(self, request: Request) -> Response:
        self._check_admin(request)
        return JSONResponse({name: m.live_settings() for name, m in self.models.items()})

    async def _change_config(self, request: Request) -> Response:
        self._check_admin(request)
        body = await _read_body(request, _ADMIN_BODY_BYTES)
        try:
            fields = json.loads(body)
            name = fields.pop("model", None) if isinstance(fields, dict) else None
            change = parse_live_config(fields)
            models = list(self.models.values()) if name is None else [self.models[name]]
            settings = {model.spec.name: model.reconfigure(change) for model in models}
        except KeyError:
            known = ", ".join(self.models)
            raise RefusedError("unknown_model", f"model is not served; served: {known}") from None
        except ConfigError as error:
            raise RefusedError("bad_request", str(error)) from None
        except ValueError as error:
            raise RefusedError("bad_request", f"the request is not JSON: {error}") from None
        return JSONResponse(settings)

    def _check_admin(self, request: Request) -> None:
        """Let in who has the token; without a configured token, who calls from this host.

        A browser names the page it acts for: requests with an Origin are refused.
        """
        if self._admin_token is not None:
            given = request.headers.get("authorization", "")
            if hmac.compare_digest(given.encode(), f"Bearer {self._admin_token}".encode()):
                return
            raise RefusedError("forbidden", "this needs the server's admin token as bearer token")
        if "origin" in request.headers or not _is_loopback(request):
            raise RefusedError("forbidden", "without an admin token only this host may do that")


def _refusing(handle: Handler) -> Handler:
    """Wrap a handler so that every refusal and every bug of ours becomes a JSON answer."""

    @functools.wraps(handle)
    async def answer(request: Request) -> Response:
        try:
            return await handle(request)
        except RefusedError as error:
            return _refuse(error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("%s %s failed", request.method, request.url.path)
            return _refuse(RefusedError("internal", "an internal error; the server's log has it"))

    return answer


def _refuse(error: RefusedError, request_id: str | None = None) -> Response:
    headers: dict[str, str] = {}
    if error.retry_after_s:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.reason == "too_large":
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(
        oip.build_error(error, request_id),
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
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(size, max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(size: int, max_bytes: int) -> RefusedError:
    return RefusedError(
        "too_large", f"the body has {size} bytes or more, allowed {max_bytes} (max_body_bytes)"
    )


async def _unless_disconnected(request: Request, work: Awaitable[Any]) -> Any:
    """Await `work`, cancelling it when the client goes away meanwhile."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    watch.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            raise RefusedError("cancelled", "the client has gone", status="dropped") from None
        task.cancel()
        raise
    finally:
        watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
