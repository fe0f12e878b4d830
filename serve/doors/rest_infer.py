"""`RestInference`: what an inference request meets over HTTP, past the framework's layers.

Those took a third of the processor's time that a request costs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.types import Receive, Send

from serve.doors import rest_messages
from serve.doors.body_budget import InflightBody
from serve.doors.headers import check_not_encoded
from serve.doors.http_answer import CLOSING, HttpAnswer, Respond, refusal
from serve.doors.http_call import WHEN_GONE, WHOLE, HttpCall
from serve.doors.json_bounds import check_begun
from serve.doors.parse_turn import SMALL_BYTES, ParseTurn
from serve.doors.request_body import check_size, read_body
from serve.doors.server import Server
from serve.doors.shared_memory import RegionAccess
from serve.engine.reply import Reply
from serve.models.limits import RefusedError
from serve.models.request import InferRequest
from serve.models.served_model import ServedModel
from serve.proto.names import BINARY_HEADER

logger = logging.getLogger(__name__)

_BINARY = b"application/octet-stream"
_BINARY_HEADER = BINARY_HEADER.encode()
_TASKS: set[asyncio.Task[HttpAnswer]] = set()  # that nobody else holds


class _ServedCall(NamedTuple):
    """A call that is read: by which model it is served, and what was asked."""

    call: HttpCall
    model: ServedModel
    parsed: InferRequest
    regions: RegionAccess


class RestInference:
    """Answers inference requests of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._guard = server.guard
        self._parse_turn = ParseTurn()
        self._told: tuple[RefusedError, HttpAnswer] | None = None

    async def answer(
        self, call: HttpCall, send: Send, model_name: str, version: str | None
    ) -> None:
        """Answer a request for a model, or for one subnet of it (`version`)."""
        try:
            answer = await self._infer(call, model_name, version)
        except RefusedError as error:
            answer = self.refuse(call, error)
        except Exception:  # the door's boundary: the client learns that it failed, the log why
            answer = self.failed(call)
        await answer.send(call.scope, send, call.request_id)

    def failed(self, call: HttpCall) -> HttpAnswer:
        """Log the exception that is handled now and return what its client gets."""
        logger.exception("POST %s failed", call.scope["path"])
        return self.refuse(
            call, RefusedError("internal", "an internal error; the server's log has it")
        )

    def refuse(
        self, call: HttpCall, error: RefusedError, client_id: str | None = None
    ) -> HttpAnswer:
        """Count a refusal and return the answer that it is."""
        self._server.refused("http", error.reason, call.caller.tenant.name)
        error.__traceback__ = None  # its frames hold the request, and it may be told again
        is_closing = error.reason in CLOSING or not call.is_kept()
        if client_id is not None or is_closing:
            return refusal(error, client_id, is_closing=is_closing)
        if self._told is None or self._told[0] is not error:  # many may be told the same
            self._told = error, refusal(error)
        return self._told[1]

    def answer_at_once(
        self,
        call: HttpCall,
        body: bytes | bytearray,
        respond: Respond,
        model_name: str,
        version: str | None,
    ) -> None:
        """Answer a request that has come whole, without a task where nothing has to wait.

        Tasks, futures and what awaits them cost a third of such a request.
        """
        try:
            model = self._admit(call, model_name, version)
        except RefusedError as error:  # most of what comes under overload: nothing else is made
            self.refuse(call, error).respond(respond, call.request_id)
            return
        except Exception:  # the door's boundary, as in `answer`: it is logged and answered
            self.failed(call).respond(respond, call.request_id)
            return
        inflight = self._server.budget.body()
        at_once = _AtOnce(self, call, inflight, respond)
        try:
            if self._waits(call, body) or not inflight.take_at_once(len(body)):
                at_once.go_on(self._infer_whole(call, model, version, inflight))
                return
            regions = self._regions(call, inflight)
            parsed = self._parse_now(call, model, _form_of(call), body, regions)
            served = _ServedCall(call, model, self._charged(call, parsed, version), regions)
            if isinstance(parsed.samples, tuple):  # to be decoded elsewhere
                at_once.go_on(self._serve(served))
            else:
                at_once.open(served)
        except RefusedError as error:
            at_once.end(self.refuse(call, error))
        except Exception:  # the door's boundary, as in `answer`: it is logged and answered
            at_once.end(self.failed(call))

    def _waits(self, call: HttpCall, body: bytes | bytearray) -> bool:
        """Whether a body is long to parse, or longer than allowed. Raises RefusedError."""
        is_long = len(body) > SMALL_BYTES and _form_of(call).json_length(body) > SMALL_BYTES
        return is_long or len(body) > self._server.max_body_bytes

    def answer_of(self, served: _ServedCall, replies: Sequence[Reply]) -> HttpAnswer:
        """Return the answer that replies are. Raises RefusedError: shared memory has gone."""
        model = served.model
        body, json_length = rest_messages.build_response(
            served.parsed,
            model.spec,
            model.policy_name,
            replies,
            served.regions,
            self._server.replicas.tag,
        )
        if json_length is None:
            return HttpAnswer(200, body)
        return HttpAnswer(200, body, _BINARY, ((_BINARY_HEADER, b"%d" % json_length),))

    async def _infer(self, call: HttpCall, model_name: str, version: str | None) -> HttpAnswer:
        model = self._admit(call, model_name, version)
        inflight = self._server.budget.body()
        try:
            return await self._infer_whole(call, model, version, inflight)
        finally:
            inflight.release()

    def _admit(self, call: HttpCall, model_name: str, version: str | None) -> ServedModel:
        """Return the model for who may ask it now; nothing of the body is looked at."""
        call.caller = call.identify(self._guard, "infer")
        model = self._server.models_for(call.caller).find(model_name, version)
        self._guard.admit(call.caller)
        model.check_waited(
            call.headers,
            arrival_s=call.arrival_s,
            request_id=call.request_id,
            tenant=call.caller.tenant,
        )
        return model

    async def _infer_whole(
        self, call: HttpCall, model: ServedModel, version: str | None, inflight: InflightBody
    ) -> HttpAnswer:
        form, regions = _form_of(call), self._regions(call, inflight)
        check_not_encoded(call.headers.get("content-encoding"))
        body = await self._body(call, form, inflight)
        call.is_read = True
        async with self._parse_turn.of(form.json_length(body)):
            parsed = self._parse_now(call, model, form, body, regions)
        parsed = self._charged(call, parsed, version)
        return await self._serve(_ServedCall(call, model, parsed, regions))

    async def _serve(self, served: _ServedCall) -> HttpAnswer:
        call = served.call
        inferring = served.model.infer(
            served.parsed,
            call.headers,
            arrival_s=call.arrival_s,
            request_id=call.request_id,
            tenant=call.caller.tenant,
        )
        try:
            return self.answer_of(served, await _unless_gone(call, inferring))
        except RefusedError as error:
            return self.refuse(call, error, served.parsed.request_id)

    def _regions(self, call: HttpCall, inflight: InflightBody) -> RegionAccess:
        owner = functools.partial(call.memory_owner, self._guard)
        return self._server.memory.of(owner, inflight.take_or_refuse)

    def _parse_now(
        self,
        call: HttpCall,
        model: ServedModel,
        form: rest_messages.BodyForm,
        body: bytes | bytearray,
        regions: RegionAccess,
    ) -> InferRequest:
        check_not_encoded(call.headers.get("content-encoding"))
        call.is_read = True
        bound = self._server.max_json_bytes
        return rest_messages.parse_infer(
            body, form, model.spec, max_json_bytes=bound, regions=regions
        )

    def _charged(self, call: HttpCall, parsed: InferRequest, version: str | None) -> InferRequest:
        """Charge the samples of a request, and pin it to its version."""
        self._guard.charge(call.caller, len(parsed.samples))
        if version is not None:
            parsed.parameters["subnet"] = version
        return parsed

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


class _AtOnce:
    """An answer without a task of a framework: it ends once, whatever happens meanwhile."""

    __slots__ = ("_call", "_forget", "_inference", "_inflight", "_is_over", "_respond", "_served")

    def __init__(
        self, inference: RestInference, call: HttpCall, inflight: InflightBody, respond: Respond
    ) -> None:
        self._inference = inference
        self._call = call
        self._inflight = inflight
        self._respond = respond
        self._is_over = False
        self._served: _ServedCall | None = None
        self._forget: Callable[[], object] | None = None

    def open(self, served: _ServedCall) -> None:
        """Ask the engine; a client that goes away withdraws what it asked. Raises RefusedError."""
        self._served, call = served, self._call
        withdraw = served.model.open_request(
            served.parsed,
            call.headers,
            arrival_s=call.arrival_s,
            request_id=call.request_id,
            tenant=call.caller.tenant,
            on_end=self._replied,
        )
        if not self._is_over:
            self._forget = call.scope[WHEN_GONE](withdraw)

    def go_on(self, work: Coroutine[Any, Any, HttpAnswer]) -> None:
        """Answer by a task after all."""
        task = asyncio.ensure_future(work)
        _TASKS.add(task)
        task.add_done_callback(self._worked)

    def end(self, answer: HttpAnswer) -> None:
        """Send the answer, and give the bytes of the request back."""
        if self._is_over:
            return
        self._is_over = True
        forget, self._forget = self._forget, None  # it knows us: a cycle would hold the samples
        if forget is not None:
            forget()
        self._inflight.release()
        answer.respond(self._respond, self._call.request_id)

    def _worked(self, task: asyncio.Task[HttpAnswer]) -> None:
        _TASKS.discard(task)
        try:
            self.end(task.result())
        except RefusedError as error:
            self.end(self._inference.refuse(self._call, error))
        except asyncio.CancelledError:  # the loop ends
            self._inflight.release()
        except Exception:  # the same boundary: an error of a task would end in nobody's hands
            self.end(self._inference.failed(self._call))

    def _replied(self, end: list[Reply] | RefusedError) -> None:
        """Take the end of the request; raises nothing, since the engine goes on with others."""
        assert self._served is not None, "opened"
        inference, call = self._inference, self._call
        try:
            if isinstance(end, RefusedError):
                raise end
            answer = inference.answer_of(self._served, end)
        except RefusedError as error:
            answer = inference.refuse(call, error, self._served.parsed.request_id)
        except Exception:  # the same boundary: the engine that calls this has others to answer
            answer = inference.failed(call)
        self.end(answer)


def _form_of(call: HttpCall) -> rest_messages.BodyForm:
    headers = call.headers
    return rest_messages.BodyForm(headers.get("content-type", ""), headers.get(BINARY_HEADER))


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

    stop_watching = watch_client(call, cancel)
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


def watch_client(call: HttpCall, when_gone: Callable[[], None]) -> Callable[[], object]:
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
