"""Requests that wait, in their sockets or for their turn: since when, in which order, for whom."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serve.doors.http_answer import SEND_WHOLE
from serve.doors.http_call import FIRST_BYTE
from serve.hosts.connections.bounded_connection import BoundedConnection, bounded
from serve.hosts.uvicorn_listener import bind, listening
from serve.models.intake import Intake
from serve.observe.loop_lag import LoopLag
from serve.observe.socket_age import last_received_s

LOOPS = {"asyncio": None, "uvicorn's": uvicorn.Config("", log_config=None).get_loop_factory()}
STALL_S = 0.3
SENT_S = (0.05, 0.15, 0.25)  # into the stall
TICK_S = 0.02  # a kernel's, at the most, and what threads need


@pytest.mark.alone
@pytest.mark.parametrize("loop", LOOPS)
def test_what_came_while_the_loop_stood_still_has_waited_since_then(loop: str):
    """All of it had waited for as long as the loop stood still, also what came at the end."""
    came_s: dict[str, float] = {}
    sent_s: dict[str, float] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came_s[scope["path"]] = scope[FIRST_BYTE]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    def ask(port: int, is_open: threading.Barrier) -> None:
        with contextlib.ExitStack() as stack:
            socks = [socket.create_connection(("127.0.0.1", port)) for _ in SENT_S]
            for sock in socks:
                stack.enter_context(sock)
            is_open.wait()
            began_s = time.monotonic()
            for number, (sock, at_s) in enumerate(zip(socks, SENT_S, strict=True)):
                time.sleep(max(0.0, began_s + at_s - time.monotonic()))
                sent_s[f"/{number}"] = time.monotonic()
                sock.sendall(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
            for sock in socks:
                sock.recv(1000)

    async def main() -> None:
        lag, sock, is_open = LoopLag(), bind("127.0.0.1", 0), threading.Barrier(2)
        limits: dict[str, Any] = {"max_connections": 8, "drain_left_s": lambda: 1.0}
        with lag.running():
            async with listening(app, "127.0.0.1", 0, inherited=sock, lag_s=lag.now_s, **limits):
                asking = asyncio.ensure_future(
                    asyncio.to_thread(ask, sock.getsockname()[1], is_open)
                )
                await asyncio.sleep(0.1)  # the connections are accepted
                is_open.wait()
                time.sleep(STALL_S)
                await asking

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    errors_s = [came_s[path] - sent_s[path] for path in sent_s]
    assert errors_s == pytest.approx([0.0] * len(SENT_S), abs=TICK_S)


def test_the_age_of_data_is_known_of_tcp_alone():
    assert last_received_s(None) is None
    for sock in socket.socketpair():
        with sock:
            assert last_received_s(sock) is None


class Busy(Intake):
    """Has no time in the turn in which something comes."""

    def has_time(self, now_s: float) -> bool:
        super().has_time(now_s)
        return False


class Wire(asyncio.Transport):
    """A connection whose other end only listens."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.is_read, self.is_closed, self.is_aborted = b"", True, False, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


class Door:
    """Answers with the length of the body it was sent; keeps when requests came."""

    def __init__(self) -> None:
        self.came_s: list[float] = []

    def answer_at_once(self, scope: Any, receive: Any, body: bytearray, respond: Any) -> bool:
        if scope["path"] == "/broken":
            raise ValueError("broken")
        self.came_s.append(scope[FIRST_BYTE])
        respond(200, (), b"<%d>" % len(body))
        return True


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """Answer, as the door does, what did not come in one piece."""
    size, is_more = 0, True
    while is_more:
        message = await receive()
        size, is_more = size + len(message["body"]), message["more_body"]
    await scope[SEND_WHOLE](200, (), b"<%d>" % size)


def post(body: bytes, path: str = "/") -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (
        path.encode(), len(body),
    ) + body  # fmt: skip


class Visit:
    """A connection to a door that is busy."""

    def __init__(self) -> None:
        self.door, self.wire = Door(), Wire()
        kind = bounded(10, lambda: 0.0, door=self.door, intake=Busy())
        config = uvicorn.Config(read_all, lifespan="off", proxy_headers=False)
        self.connection: BoundedConnection = kind(
            config=config, server_state=ServerState(), app_state={}
        )
        self.connection.connection_made(self.wire)

    async def turns(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def visited(body: Any) -> Visit:
    async def main() -> Visit:
        visit = Visit()
        await body(visit)
        visit.connection.connection_lost(None)
        return visit

    return asyncio.run(main())


def test_a_request_in_several_packets_waits_as_one_and_since_the_first():
    async def body(visit: Visit) -> None:
        raw, connection = post(b"0123456789"), visit.connection
        before_s = time.monotonic()
        connection.data_received(raw[:20])
        after_s = time.monotonic()
        time.sleep(0.01)
        connection.data_received(raw[20:-3])
        connection.data_received(raw[-3:])
        assert not visit.wire.sent
        await visit.turns()
        assert visit.wire.sent.endswith(b"<10>")
        assert before_s <= visit.door.came_s[0] <= after_s
        connection.data_received(raw)
        await visit.turns()

    visit = visited(body)
    assert visit.wire.sent.count(b"<10>") == 2


def test_of_what_waits_no_more_is_read_than_64_kib():
    async def body(visit: Visit) -> None:
        raw = post(b"b" * 200_000)
        visit.connection.data_received(raw[:60_000])
        assert visit.wire.is_read
        visit.connection.data_received(raw[60_000:120_000])
        assert not visit.wire.is_read
        await visit.turns()
        visit.connection.data_received(raw[120_000:])
        await visit.turns()

    visit = visited(body)
    assert visit.wire.is_read
    assert visit.wire.sent.endswith(b"<200000>")


def test_who_has_gone_is_not_looked_at():
    async def body(visit: Visit) -> None:
        visit.connection.data_received(post(b""))
        visit.wire.close()
        await visit.turns()

    assert not visited(body).door.came_s


def test_what_waits_when_the_server_ends_is_answered_first():
    async def body(visit: Visit) -> None:
        visit.connection.data_received(post(b""))
        visit.connection.shutdown()

    visit = visited(body)
    assert visit.wire.sent.endswith(b"<0>")
    assert visit.wire.is_closed


def test_who_waits_makes_no_room_for_others_and_an_unfinished_head_does():
    async def body(visit: Visit) -> None:
        assert visit.connection.waits_since_s is not None
        visit.connection.data_received(post(b"")[:10])
        assert visit.connection.waits_since_s is None
        await visit.turns()
        assert visit.connection.waits_since_s is not None

    visited(body)


def test_a_request_that_breaks_the_door_closes_its_connection_alone():
    async def body(visit: Visit) -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        visit.connection.data_received(post(b"", "/broken"))
        await visit.turns()
        assert [type(context["exception"]) for context in told] == [ValueError]

    assert visited(body).wire.is_aborted
