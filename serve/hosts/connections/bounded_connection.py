"""`BoundedConnection`: uvicorn's HTTP/1.1 protocol, bounded in what nobody reads.

uvicorn waits for ever for a head and keeps all of it, takes trailers of any length, and reads on
when a request has been answered before its end. Here whatever reaches no reader has 64 KiB: a head,
the lines between chunks and behind them, a body that comes after its answer. A head has 30
seconds (from the connection, or from its first byte), the rest of a message 35: bodies that are
read have time limits of their own (`doors/request_body.py`), which end before. Then the client gets
408 or 431 if nothing was answered, and the connection is closed. A client that reads next to
nothing of its answer for 30 seconds is let go (`slow_reader.py`). At `max_connections` the one that
has asked for nothing the longest makes room, idle or with an unfinished head; where every other is
being answered, the newcomer gets 503. One that has had its share of requests, or is old, is closed
behind an answer that says so: whoever keeps a connection comes to other replicas as well.

A request that asks for another protocol (`Upgrade`: Java's client does for every first one) is
answered as if it did not: the parser, which takes what follows such a head for the other protocol,
is given the request once more without it.

While more comes than there is time for, requests wait their turn (`models/intake.py`); of one that
waits no more than 64 KiB are read.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools
from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serve.access.guard import UNIX
from serve.doors.headers import without_upgrade
from serve.doors.http_answer import SEND_WHOLE, AtOnceDoor, Headers, is_closed, last_answer
from serve.doors.http_call import FIRST_BYTE, WHEN_GONE, WHOLE, WHY_GONE
from serve.hosts.connections.known_heads import KnownHead, KnownHeads
from serve.hosts.connections.slow_reader import SlowReader
from serve.models.intake import Intake
from serve.models.limits import RefusedError
from serve.observe.socket_age import is_unix, last_received_s

HEAD_TIMEOUT_S = 30.0
MESSAGE_TIMEOUT_S = 35.0
MOST_UNREAD_BYTES = 64 * 2**10
_LONG_LAG_S = 0.008  # two ticks of the kernel, which says how old data are
_LINGER_S = 0.5
_LINGER_BYTES = 4 * MOST_UNREAD_BYTES
_REFUSALS = {
    HTTPStatus.BAD_REQUEST: ("bad_request", "the request is not HTTP/1.1"),
    HTTPStatus.REQUEST_TIMEOUT: ("too_slow", "the request did not arrive in time"),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        "head_too_large",
        f"the request has more than {MOST_UNREAD_BYTES} bytes beside a body that is read",
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "too_many_connections",
        "every connection that the server may hold is being answered (max_connections)",
    ),
}


class BoundedConnection(HttpToolsProtocol):
    """One connection. A message that comes whole costs a few additions: no timer runs for it.

    Class attributes, set by `bounded`: `max_connections`; `lag_s`, how long the event loop has kept
    waiting what it now hands over; `max_requests` and `max_age_s` of one connection (None: any);
    `intake`, where requests wait their turn (None: they don't).
    """

    max_connections: int = 2**31
    intake: Intake | None = None
    lag_s: Callable[[], float] = staticmethod(lambda: 0.0)
    max_requests: int | None = None
    max_age_s: float | None = None
    door: AtOnceDoor | None = None
    known_heads: KnownHeads

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_in_head = False
        self._is_in_message = False
        self._is_upgrading = False
        self._is_refused = False
        self._is_feeding = False
        self._unread_bytes = 0
        self._head_bytes = 0
        self._num_requests = 0
        self._came_s = 0.0  # when what was read last came
        self._kept = bytearray()  # read, and not yet worked on
        self._old_at_s = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._reader = SlowReader()
        self.waits_since_s: float | None = None  # for a whole head; None while one is answered
        self._first_byte_s: float | None = None  # of a request that is read once more
        self._when_gone: dict[Callable[[], None], None] = {}
        self._deferred: RequestResponseCycle | None = None  # no task has begun for it yet

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if self.client is None and is_unix(transport.get_extra_info("socket")):
            self.client = (UNIX, 0)
        if len(self.connections) > self.max_connections and not self._make_room():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.waits_since_s = time.monotonic()
        if self.max_age_s is not None:  # not all that came together shall go together
            self._old_at_s = self.waits_since_s + self.max_age_s * random.uniform(0.9, 1.1)
        self._start_timer(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._reader.has_read()
        super().connection_lost(exc)
        self._tell_gone()
        self.pipeline.clear()
        if self.cycle is not None:  # nobody reads on, and a closed connection is freed late
            self.cycle.body = bytearray()

    def why_gone(self) -> str:
        """Say why the client is taken to have gone."""
        return "too_slow" if self._reader.is_given_up else "cancelled"

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.wait(self.transport, self.loop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.has_read()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._reader.wait(self.transport, self.loop)

    def when_gone(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called when the client goes away; return what takes that back."""
        self._when_gone[call] = None
        if self.transport.is_closing():
            self.loop.call_soon(self._tell_gone)
        return functools.partial(self._when_gone.pop, call, None)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._unread_bytes += len(data)
            if self._unread_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._kept:
            self._keep(data)
            return
        now_s = time.monotonic()
        self._came_s = now_s - self._waited_s()
        is_first = not self._is_in_message and self._has_answered()
        if self.intake is None or self.intake.has_time(now_s) or not is_first:
            self._take(data, is_first)
            return
        self.waits_since_s = None  # it has asked for something
        self._stop_timer()
        self.intake.keep(self, self._came_s)
        self._keep(data)

    def _waited_s(self) -> float:
        """Return how long what is read now has waited in its socket."""
        lag_s = self.lag_s()
        if lag_s < _LONG_LAG_S:
            return lag_s
        age_s = last_received_s(self.transport.get_extra_info("socket"))
        return lag_s if age_s is None else age_s

    def _keep(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > MOST_UNREAD_BYTES:
            self.flow.pause_reading()

    def take_kept(self) -> None:
        """Work on what was kept, if the client is still there."""
        if not self._kept or self._is_refused or self.transport.is_closing():
            return
        data, self._kept = bytes(self._kept), bytearray()
        self.waits_since_s = self._came_s
        self.flow.resume_reading()
        try:
            self._take(data, is_first=True)
        except Exception:  # as an event loop does, which is told of it, for what it hands over
            self.transport.abort()
            raise

    def shutdown(self) -> None:
        self.take_kept()
        super().shutdown()

    def _take(self, data: bytes, is_first: bool) -> None:
        """Work on what was read; `is_first`: no request is open that comes before."""
        self._unread_bytes += len(data)
        is_first = is_first and self.door is not None
        known = self.known_heads.find(data) if is_first else None
        if known is not None:
            self._take_known(known, data)
            return
        self._is_feeding = True
        self._feed(data)
        self._is_feeding = False
        if self._deferred is not None:
            if is_first and WHOLE in self._own_scope:
                self.known_heads.learn(data, self._own_scope)
            self._begin_deferred()
        if self._is_refused or self.transport.is_closing() or not self._is_in_message:
            return
        if self._unread_bytes > MOST_UNREAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._timer is None:
            self._start_timer(HEAD_TIMEOUT_S if self._is_in_head else MESSAGE_TIMEOUT_S)

    def _has_answered(self) -> bool:
        """Whether no request is open: what comes now is answered next."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _take_known(self, known: KnownHead, data: bytes) -> None:
        """Take a whole request whose head is known: what the parser and its callbacks would do."""
        self._unread_bytes = 0
        self.waits_since_s = None
        self._stop_timer()
        self.on_message_begin()
        self._is_in_head = self._is_in_message = False
        self.headers += known.headers
        scope = self._own_scope
        scope |= known.scope
        scope[WHOLE] = True
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        self._number()
        self.cycle.body += data[known.length :]
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self._deferred = self.cycle
        self._begin_deferred()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._is_upgrading:  # else it is CONNECT, which asks for a tunnel
                    data = self._without_upgrade() + data[upgrade.args[0] :]
                    continue
            except httptools.HttpParserError:
                pass
            self._deferred = None
            self._refuse(HTTPStatus.BAD_REQUEST)
            return

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Wait for the rest of the packet: a whole request may be answered without a task."""
        if self.door is not None and self._is_feeding:
            self._deferred = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _begin_deferred(self) -> None:
        cycle, self._deferred = self._deferred, None
        assert cycle is not None, "deferred"
        assert self.door is not None, "or nothing is deferred"
        if WHOLE in cycle.scope and not self.flow.write_paused and not cycle.disconnected:
            respond = functools.partial(self._respond, cycle)
            receive = cast("Receive", cycle.receive)
            if self.door.answer_at_once(cast("Scope", cycle.scope), receive, cycle.body, respond):
                return
        super()._start_asgi_task(cycle, cast("Any", self.app))

    @property
    def _own_scope(self) -> dict[str, Any]:
        """The request's scope, which takes keys of ours beside those that ASGI names."""
        return cast("dict[str, Any]", self.scope)

    def _without_upgrade(self) -> bytes:
        """Return the head that was read less its wish, and begin to read anew."""
        self._first_byte_s = self._own_scope[FIRST_BYTE]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        line = b"%b %b HTTP/%b" % (self._method, self.url, self._version.encode())
        return without_upgrade(line, self.headers)

    def on_message_begin(self) -> None:
        self._is_in_head = self._is_in_message = True
        self._is_upgrading = False
        self._unread_bytes = self._head_bytes = 0
        super().on_message_begin()
        first_byte_s, self._first_byte_s = self._first_byte_s, None
        scope = self._own_scope
        scope[FIRST_BYTE] = self._came_s if first_byte_s is None else first_byte_s
        scope[WHEN_GONE] = self.when_gone
        scope[WHY_GONE] = self.why_gone

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return  # a trailer: nobody reads those
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unread_bytes = 0
        self.waits_since_s = None
        self._stop_timer()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._is_in_head = False
            self._is_upgrading = True  # `_without_upgrade` follows
            self._method, self._version = self.parser.get_method(), self.parser.get_http_version()
            return
        super().on_headers_complete()  # raises for a target that is none: its head is refused
        self._is_in_head = False
        self._number()

    def _number(self) -> None:
        """Count a request whose head has been read, and let its answer be sent in one write."""
        self._num_requests += 1
        if self._num_requests == self.max_requests or self._came_s > self._old_at_s:
            self.cycle.keep_alive = False  # its answer says so
        scope = self._own_scope
        scope[SEND_WHOLE] = functools.partial(self._send_whole, self.cycle)

    async def _send_whole(
        self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes
    ) -> None:
        """Send a whole answer of ours: what `cycle.send` does with its parts, in one write.

        It looks every header over and writes twice, which is a third of what uvicorn costs.
        """
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        self._write(cycle, status, headers, body)

    def _respond(
        self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes
    ) -> None:
        """Send a whole answer to whoever is still there; raises nothing."""
        try:
            self._write(cycle, status, headers, body)
        except Exception as error:  # as uvicorn does for a task: nobody else hears of it
            if not is_closed(error):
                self.logger.exception("an answer could not be written")
            self.transport.close()

    def _write(
        self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes
    ) -> None:
        if cycle.disconnected:
            return
        parts, is_closing = [STATUS_LINE[status]], False
        for name, value in (*cycle.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
            is_closing |= name == b"connection"  # ours say `close` and nothing else
        if is_closing:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self.transport.write(b"".join(parts))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        # Both hold the answered request in a cycle of references, and its body with it.
        cycle.scope.pop(SEND_WHOLE, None)
        cycle.body = bytearray()
        cycle.on_response()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        self._stop_timer()
        if not self._is_upgrading:
            self._own_scope[WHOLE] = True
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # the last that came; `_write` has seen to others
            self.cycle.scope.pop(SEND_WHOLE, None)
        if self.transport.is_closing():  # once the client has read all: it has so long
            self._reader.wait(self.transport, self.loop)
        if not self.pipeline and not self._is_in_message:
            self.waits_since_s = time.monotonic()

    def _count_head(self, count: int) -> None:
        """Bound a head whatever the packets it comes in. Raises what makes uvicorn answer 400."""
        self._head_bytes += count
        if self._head_bytes > MOST_UNREAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise httptools.HttpParserError("the head is too large")

    def _tell_gone(self) -> None:
        """Tell who works on requests of the connection that nobody waits for them."""
        for call in tuple(self._when_gone):
            call()

    def _make_room(self) -> bool:
        """Close the connection that asks for nothing the longest; return whether there was one."""
        others = (c for c in self.connections if isinstance(c, BoundedConnection) and c is not self)
        waiting = [
            (c.waits_since_s, c.transport)
            for c in others
            if c.waits_since_s is not None and not c.transport.is_closing()
        ]
        if waiting:
            min(waiting, key=lambda waits: waits[0])[1].close()
        return bool(waiting)

    def _start_timer(self, timeout_s: float) -> None:
        self._timer = self.loop.call_later(timeout_s, self._refuse, HTTPStatus.REQUEST_TIMEOUT)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        if self._is_refused:
            return  # it has its answer
        self._stop_timer()
        cycle = self.cycle  # of the message, or in a head of the one before
        is_answered = cycle is not None and cycle.response_started
        if not is_answered or (self._is_in_head and cycle.response_complete):
            self.transport.write(last_answer(status, RefusedError(*_REFUSALS[status])))
        self._linger()

    def _linger(self) -> None:
        """Close, but read on for a moment: with bytes unread a close takes back what was sent."""
        self._is_refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # who still works on it is told, and sends no more
            self.cycle.message_event.set()
            self._tell_gone()
        self.flow.resume_reading()
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.close)


def bounded(
    max_connections: int,
    lag_s: Callable[[], float],
    *,
    max_requests: int | None = None,
    max_age_s: float | None = None,
    door: AtOnceDoor | None = None,
    intake: Intake | None = None,
) -> type[BoundedConnection]:
    """Return the protocol with its limits, as uvicorn wants it: a class.

    `door` is asked first whether it answers a whole request without a task.
    """
    limits: dict[str, Any] = {"max_connections": max_connections, "lag_s": staticmethod(lag_s)}
    limits |= {"max_requests": max_requests, "max_age_s": max_age_s, "door": door}
    limits |= {"known_heads": KnownHeads(), "intake": intake}
    return type("BoundedConnection", (BoundedConnection,), limits)
