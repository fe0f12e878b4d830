"""`OpenAIDoor`: an ASGI app in front of the HTTP door that also speaks OpenAI's protocol.

`/v1/...` and `/health` are answered here, without a framework: what a token costs on its way out is
paid for every token. Everything else goes on to the HTTP door, whose lifespan is the server's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from serve.doors.http_answer import HttpAnswer, Respond
from serve.doors.http_call import HttpCall, HttpCalls
from serve.doors.rest import RestDoor
from serve.doors.server import Server
from serve.models.limits import RefusedError
from serve.models.served_decoder import ServedDecoder
from serve.openai.completion_request import read_messages, refuse_other_prompts
from serve.openai.completions import Completions, encode_prompt
from serve.openai.error_object import FieldError

logger = logging.getLogger(__name__)

OWNER = "supernet-serving"
Handler = Callable[[HttpCall], Awaitable[HttpAnswer]]


class OpenAIDoor:
    """The app; `rest` is the door behind it."""

    def __init__(self, server: Server, rest: RestDoor) -> None:
        """Serve the decoders of `server`, of which there is one at the least."""
        self._server = server
        self._rest = rest
        self._calls = HttpCalls(server.models.clock, server.loop_lag.now_s)
        self._completions = Completions(server)
        self._handlers: dict[str, tuple[str, Handler]] = {
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/ping": ("GET", self._health),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is ours, hand on what is not."""
        if scope["type"] != "http" or not self._is_ours(_path(scope)):
            await self._rest(scope, receive, send)
            return
        call = self._calls.call(scope, receive)
        path, method = _path(scope), scope["method"]
        if method == "POST" and path == "/v1/completions":
            await self._completions.answer(call, send, is_chat=False)
        elif method == "POST" and path == "/v1/chat/completions":
            await self._completions.answer(call, send, is_chat=True)
        else:
            answer = await self._answer(call, method, path)
            await answer.send(scope, send, call.request_id)

    def answer_at_once(
        self, scope: Scope, receive: Receive, body: bytes | bytearray, respond: Respond
    ) -> bool:
        """Answer an inference request of the door behind that has come whole; see `RestDoor`."""
        return self._rest.answer_at_once(scope, receive, body, respond)

    def _is_ours(self, path: str) -> bool:
        return path.startswith("/v1/") or path in self._handlers

    async def _answer(self, call: HttpCall, method: str, path: str) -> HttpAnswer:
        """Answer what is no completion; every refusal and bug becomes an error object."""
        try:
            if path in ("/v1/completions", "/v1/chat/completions"):
                raise _not_allowed(method, path, "POST")
            if path.startswith("/v1/models/"):
                if method not in ("GET", "HEAD"):
                    raise _not_allowed(method, path, "GET")
                return await self._model(call, path.removeprefix("/v1/models/"))
            allowed, handler = self._handlers.get(path, ("", None))
            if handler is None:
                text = f"{path:.200} is not served here; docs/reference.md lists what is"
                raise RefusedError("unknown_path", text)
            if method != allowed and (method, allowed) != ("HEAD", "GET"):
                raise _not_allowed(method, path, allowed)
            return await handler(call)
        except RefusedError as error:
            return self._completions.refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            logger.exception("%s %s failed", method, path)
            text = "an internal error; the server's log has it"
            return self._completions.refuse(call, RefusedError("internal", text))

    # --- looking ---------------------------------------------------------------------------------

    async def _health(self, _: HttpCall) -> HttpAnswer:
        self._server.models.check_ready()
        return _json({})

    async def _models(self, call: HttpCall) -> HttpAnswer:
        call.caller = call.identify(self._server.guard, "infer")
        models = [_described(decoder) for decoder in self._server.models.decoders]
        return _json({"object": "list", "data": models})

    async def _model(self, call: HttpCall, name: str) -> HttpAnswer:
        call.caller = call.identify(self._server.guard, "infer")
        return _json(_described(self._server.models.find_decoder(name)))

    # --- tokens ----------------------------------------------------------------------------------

    async def _tokenize(self, call: HttpCall) -> HttpAnswer:
        values, decoder = await self._read(call)
        text, messages = values.get("prompt", ""), ()
        refuse_other_prompts(values, is_chat="messages" in values)
        if "messages" in values:
            messages = read_messages(values)
        elif not isinstance(text, str):
            raise FieldError("prompt", "prompt is no text; give one, or messages")
        ids = await encode_prompt(decoder, "" if messages else text, messages)
        longest = decoder.longest_tokens
        return _json({"count": len(ids), "max_model_len": longest, "tokens": ids})

    async def _detokenize(self, call: HttpCall) -> HttpAnswer:
        values, decoder = await self._read(call)
        ids, size = values.get("tokens"), decoder.spec.vocab_size
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise FieldError("tokens", f"tokens is no list of token ids, 0 to {size - 1}")
        return _json({"prompt": decoder.coder.decode(ids)})

    async def _read(self, call: HttpCall) -> tuple[dict[str, Any], ServedDecoder]:
        call.caller = call.identify(self._server.guard, "infer")
        self._server.guard.admit(call.caller)
        async with self._server.budget.body() as inflight:
            values = await self._completions.read_json(call, inflight)
        if not isinstance(values, dict):
            raise FieldError("", "the request is not a JSON object")
        return values, self._completions.decoder_of(values)


def _described(decoder: ServedDecoder) -> dict[str, Any]:
    """Return a model as OpenAI lists it; behind `owned_by` are vLLM's fields and ours."""
    spec, costs = decoder.spec, decoder.engine.costs
    return {
        "id": spec.name,
        "object": "model",
        "created": spec.created,
        "owned_by": OWNER,
        "max_model_len": decoder.longest_tokens,
        "supernet": {
            "widths": {rung.subnet_id: rung.quality for rung in costs.rungs},
            "vocab_size": spec.vocab_size,
            "quality_kind": spec.quality_kind,
            "profile": spec.profile,
            "device": spec.device,
            **decoder.settings(),
        },
    }


def _not_allowed(method: str, path: str, allowed: str) -> RefusedError:
    text = f"{method:.80} is not served at {path:.200}, allowed {allowed}"
    return RefusedError("method_not_allowed", text)


def _json(value: Any) -> HttpAnswer:
    return HttpAnswer(200, json.dumps(value).encode())


def _path(scope: Scope) -> str:
    """Return the path below the prefix that a proxy of ours leaves on it (`root_path`)."""
    path, prefix = scope["path"], scope.get("root_path") or ""
    return path.removeprefix(prefix) if prefix and path.startswith(prefix) else path
