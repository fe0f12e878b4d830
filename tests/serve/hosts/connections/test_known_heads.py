"""Heads that came before are known again, byte for byte, and only plain ones."""

from __future__ import annotations

import asyncio
import gc
from http import HTTPStatus
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from serve.doors.http_answer import SEND_WHOLE, Respond
from serve.doors.http_call import FIRST_BYTE, JOINED, WHEN_GONE, WHY_GONE
from serve.doors.rest import RestDoor
from serve.hosts.connections.bounded_connection import bounded
from serve.hosts.connections.known_heads import KnownHeads
from serve.models.intake import Intake

BODY = b"0123456789"


def head(*lines: str, length: str = "content-length: 10") -> bytes:
    return "\r\n".join(
        ["POST /v2/models/m/infer HTTP/1.1", "host: x", length, *lines, "", ""]
    ).encode()


def scope(raw: bytes, version: str = "1.1") -> dict[str, object]:
    lines = raw.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    headers = [
        (name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)
    ]
    path = "/v2/models/m/infer"
    return {
        "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "http_version": version, "headers": headers, "client": ("::1", 1), "state": {},
    }  # fmt: skip


def test_what_was_learned_is_found_with_any_body_of_its_length():
    heads, raw = KnownHeads(), head("X-Slo-Ms: 5", "x-slo-ms: 7")
    assert heads.find(raw + BODY) is None
    heads.learn(raw + BODY, scope(raw))
    found = heads.find(raw + BODY[::-1])
    assert found is not None
    assert found.length == len(raw)
    assert found.scope[JOINED]["x-slo-ms"] == "5,7"
    assert found.scope["path"] == "/v2/models/m/infer"
    assert not {"client", "state"} & set(found.scope), "those are a connection's"
    for other in (raw + BODY[:-1], raw + BODY + b"x", b" " + raw + BODY, raw.upper() + BODY, raw):
        assert heads.find(other) is None, other


def test_a_head_is_known_again_with_another_slo():
    """Clients say how much time is left, which differs each time."""
    heads, raw = KnownHeads(), head("X-Slo-Ms: 50", "x-y: 1")
    heads.learn(raw + BODY, scope(raw))
    for number in ("50", "7.25", "0", "12345.678901"):
        other = head(f"X-Slo-Ms: {number}", "x-y: 1")
        found = heads.find(other + BODY)
        assert found is not None
        assert found.length == len(other)
        assert found.scope[JOINED] == {**found.scope[JOINED], "x-slo-ms": number, "x-y": "1"}
        assert (b"x-slo-ms", number.encode()) in found.headers
        assert heads.find(other + BODY + b"x") is None
    for line in ("X-Slo-Ms: -5", "X-Slo-Ms: 5,6", "X-Slo-Ms: nan", "X-Slo-Ms:", "x-slo-ms: 50"):
        assert heads.find(head(line, "x-y: 1") + BODY) is None, line
    twice = head("X-Slo-Ms: 50", "x-y: 1", "x-slo-ms: 7")
    heads.learn(twice + BODY, scope(twice))
    assert heads.find(twice + BODY) is not None
    assert heads.find(head("X-Slo-Ms: 50", "x-y: 1", "x-slo-ms: 8") + BODY) is None


@pytest.mark.parametrize(
    "raw",
    [
        head("connection: close"),
        head("expect: 100-continue"),
        head("upgrade: h2c"),
        head("transfer-encoding: chunked"),
        head("content-length: 10"),
        head(length="content-length: 11"),
        head(length="content-length: +10"),
        head(length="x: y"),
        head("x: " + "y" * 1024),
    ],
)
def test_what_is_not_plain_is_not_learned(raw: bytes):
    heads = KnownHeads()
    heads.learn(raw + BODY, scope(raw))
    assert heads.find(raw + BODY) is None


def test_another_version_is_not_learned_and_the_oldest_makes_room():
    heads, raw = KnownHeads(), head()
    heads.learn(raw + BODY, scope(raw, "1.0"))
    assert heads.find(raw + BODY) is None
    many = [head(f"x: {number}") for number in range(257)]
    for raw in many:
        heads.learn(raw + BODY, scope(raw))
    assert heads.find(many[0] + BODY) is None
    assert all(heads.find(raw + BODY) for raw in many[1:])


class Wire(asyncio.Transport):
    """A connection whose other end only listens."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None: ...

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


class Door:
    """Answers with the body it was sent; keeps the scopes."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    def answer_at_once(self, scope: Any, receive: Any, body: bytearray, respond: Respond) -> bool:
        self.scopes.append(scope)
        respond(200, (), bytes(body))
        return True


def test_the_parser_reads_a_head_once_and_the_scope_is_the_same():
    async def run() -> Door:
        door = Door()
        kind = bounded(10, lambda: 0.0, door=cast("RestDoor", door))
        config = uvicorn.Config(kind, lifespan="off")
        raw, other = head("x: 1"), head("x: 2")
        for _ in range(2):  # connections
            connection = kind(config=config, server_state=ServerState(), app_state={})
            wire = Wire()
            connection.connection_made(wire)
            for packet in (raw + BODY, raw + BODY[::-1], other + BODY):
                connection.data_received(packet)
            assert [sent[-10:] for sent in wire.sent] == [BODY, BODY[::-1], BODY]
        connection.parser = None  # whoever reads a known head by it fails
        connection.data_received(raw + BODY)
        connection.data_received(other + BODY)
        return door

    scopes = asyncio.run(run()).scopes
    assert len(scopes) == 8
    ours = (FIRST_BYTE, JOINED, SEND_WHOLE, WHEN_GONE, WHY_GONE)
    plain = [{key: scope[key] for key in scope if key not in ours} for scope in scopes]
    assert [JOINED in scope for scope in scopes] == [False, True, False, *[True] * 5]
    assert all(scope == plain[0] for scope in (plain[1], plain[3], plain[4], plain[6]))
    assert all(scope == plain[2] for scope in (plain[5], plain[7]))


def test_an_answered_request_is_freed_at_once():
    """Without waiting for the garbage collector, which looks for cycles seldom while serving."""

    async def run() -> int:
        kind = bounded(10, lambda: 0.0, door=cast("RestDoor", Door()))
        config = uvicorn.Config(kind, lifespan="off")
        connection = kind(config=config, server_state=ServerState(), app_state={})
        connection.connection_made(Wire())
        for number in range(20):
            connection.data_received(head(f"x: {number % 10}") + BODY)
        return sum(type(each) is RequestResponseCycle for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = sum(type(each) is RequestResponseCycle for each in gc.get_objects())
        assert asyncio.run(run()) - before <= 1, "the last one at most"
    finally:
        gc.enable()


def test_a_kept_request_has_come_in_time_and_a_refused_one_is_not_worked_on():
    """The time for a head went on while it waited its turn, and it was run behind its 408."""

    async def run() -> None:
        door, intake = Door(), Intake()
        kind = bounded(10, lambda: 0.0, door=cast("RestDoor", door), intake=intake)
        config = uvicorn.Config(kind, lifespan="off")
        connections = []
        for _ in range(2):
            connection = kind(config=config, server_state=ServerState(), app_state={})
            connection.connection_made(Wire())
            connections.append(connection)
        kept, refused = connections
        intake.keep(Idle(), 0.0)  # so that nobody has a turn
        for connection in connections:
            connection.data_received(head() + BODY)
        assert kept._timer is None
        refused._refuse(HTTPStatus.REQUEST_TIMEOUT)
        for connection in connections:
            connection.take_kept()
        assert len(door.scopes) == 1

    asyncio.run(run())


class Idle:
    """Waits its turn in an intake, and has nothing to be done."""

    def take_kept(self) -> None:
        pass
