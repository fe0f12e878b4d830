"""Clients that send what nobody reads, without end: they are told so, and their connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

import serve.hosts.connections.bounded_connection
from serve.doors.http_answer import SEND_WHOLE
from serve.hosts.uvicorn_listener import bind, uvicorn_config

pytestmark = pytest.mark.alone

TIMEOUT_S = 0.3
KEEP_ALIVE_S = 0.4  # `talk` reads until the server closes an idle connection
MOST_CONNECTIONS = 8
CHUNKED = b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope, receive, send) -> None:
    body = b"ok"
    if scope["path"] == "/echo":
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        body = b"<" + body + b"|" + repr(sorted(n for n, _ in scope["headers"])).encode() + b">"
    length = str(len(body)).encode()
    headers = [(b"content-length", length)]
    if scope["path"] == "/whole":
        await scope[SEND_WHOLE](200, headers, body)
        return
    if scope["path"] == "/close":
        await scope[SEND_WHOLE](503, [*headers, (b"connection", b"close")], body)
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Serve `app` as our doors are served, with little patience."""
    monkeypatch.setattr(serve.hosts.connections.bounded_connection, "HEAD_TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(serve.hosts.connections.bounded_connection, "MESSAGE_TIMEOUT_S", TIMEOUT_S)
    config = uvicorn_config(app, None, max_connections=MOST_CONNECTIONS, lifespan="off")
    config.timeout_keep_alive = KEEP_ALIVE_S
    server = uvicorn.Server(config)
    with contextlib.closing(bind("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield sock.getsockname()[1]
        server.should_exit = True
        thread.join()


def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """Send the pieces with a pause after each; return all that came back, and when it ended."""

    async def run() -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reading = asyncio.ensure_future(reader.read())
        start_s = time.perf_counter()
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
            if reading.done():
                break
        came = await asyncio.wait_for(reading, 10)
        writer.close()
        return came, time.perf_counter() - start_s

    return asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_end_is_given_up(port: int, sent: bytes) -> None:
    came, after_s = talk(port, sent)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert TIMEOUT_S * 0.9 < after_s < TIMEOUT_S + 3


def test_a_head_that_drips_gets_no_more_time(port: int) -> None:
    came, after_s = talk(port, WHOLE[:5], WHOLE[5:8], WHOLE[8:11], WHOLE[11:12], pause_s=0.12)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert after_s < 4 * 0.12 + 3


def test_a_second_head_has_a_time_of_its_own(port: int) -> None:
    came, after_s = talk(port, WHOLE, b"GET / HT", pause_s=0.7 * TIMEOUT_S)
    assert came.startswith(b"HTTP/1.1 200 ")
    assert b"okHTTP/1.1 408 " in came
    assert after_s > 1.6 * TIMEOUT_S


def test_a_head_beyond_64_kib_is_refused(port: int) -> None:
    line = b"x-many: " + b"a" * 8000 + b"\r\n"
    came, _ = talk(port, b"GET / HTTP/1.1\r\n", line * 9, pause_s=0.05)
    assert came.startswith(b"HTTP/1.1 431 ")


def test_whole_heads_are_answered_also_in_two_pieces_and_a_row(port: int) -> None:
    came, _ = talk(port, WHOLE[:9], WHOLE[9:] + WHOLE + WHOLE, pause_s=0.01)
    assert came.count(b"HTTP/1.1 200 ") == 3
    assert b"408" not in came


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([b"0\r\n", *[b"x-trailer: " + b"a" * 8000 + b"\r\n"] * 400], id="trailers"),
        pytest.param([b"0\r\nx: ", *[b"a" * 8000] * 400], id="one trailer"),
        pytest.param([b"1;", *[b"e" * 8000] * 400], id="extension of a chunk"),
        pytest.param([b"FFFFFF\r\n", *[b"b" * 8000] * 400], id="body after the answer"),
    ],
)
def test_what_nobody_reads_is_bounded_in_bytes(port: int, rest: list[bytes]) -> None:
    """400 MiB of trailers behind a request that was answered had been kept: 400 MiB of memory."""
    sent = 0

    async def run() -> bytes:
        nonlocal sent
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        with contextlib.suppress(ConnectionError):
            for piece in rest:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
                sent += len(piece)
        came = b""
        with contextlib.suppress(ConnectionError):
            came = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return came

    came = asyncio.run(run())
    assert came.count(b"HTTP/1.1 ") <= 1
    assert sent < 1_000_000


@pytest.mark.parametrize("sent", [b"", b"3\r\nab", b"0\r\nx: "])
def test_a_message_that_nobody_reads_has_a_time(port: int, sent: bytes) -> None:
    came, after_s = talk(port, CHUNKED, sent)
    assert came.startswith(b"HTTP/1.1 200 ")
    assert came.count(b"HTTP/1.1 ") == 1
    assert after_s < TIMEOUT_S + 3


def test_a_message_that_drips_gets_no_more_time(port: int) -> None:
    pieces = [b"0\r\n", *[b"x: y\r\n"] * 12]
    came, after_s = talk(port, CHUNKED, *pieces, pause_s=0.1)
    assert came.count(b"HTTP/1.1 ") == 1
    assert after_s < TIMEOUT_S + 0.5


def test_short_trailers_and_one_byte_chunks_pass(port: int) -> None:
    pieces = [b"1\r\nx\r\n"] * 30
    end = b"0\r\nx-trailer: y\r\n\r\n"
    came, _ = talk(port, CHUNKED, *pieces, end, WHOLE)
    assert came.count(b"HTTP/1.1 200 ") == 2


def test_a_head_beyond_64_kib_is_refused_in_one_piece_too(port: int) -> None:
    line = b"x-many: " + b"a" * 8000 + b"\r\n"
    came, _ = talk(port, b"GET / HTTP/1.1\r\n" + line * 16 + b"\r\n")
    assert came.startswith(b"HTTP/1.1 431 ")
    assert came.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("sent", [b"", b"GET / HT", WHOLE])
def test_at_the_limit_the_longest_idle_connection_makes_room(port: int, sent: bytes) -> None:
    async def run() -> list[bool]:
        idle = []
        for _ in range(MOST_CONNECTIONS):
            idle.append(await asyncio.open_connection("127.0.0.1", port))
            idle[-1][1].write(sent)
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WHOLE)
        came = await asyncio.wait_for(reader.readuntil(b"ok"), 2)
        assert came.startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.01)
        ended = [reader.at_eof() for reader, _ in idle]
        if sent == WHOLE:  # an answer lies before the end
            ended = [(await reader.readuntil(b"ok") and reader.at_eof()) for reader, _ in idle]
        for _, opened in [*idle, (reader, writer)]:
            opened.close()
        return ended

    assert asyncio.run(run()) == [True] + [False] * (MOST_CONNECTIONS - 1)


JAVA = (  # what Java's HttpClient sends before its first request
    b"Connection: Upgrade, HTTP2-Settings\r\ncontent-length: 4\r\nhost: x\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
)
UPGRADES = {
    "java": JAVA,
    "websocket": b"content-length: 4\r\nhost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n",
    "kept": b"content-length: 4\r\nhost: x\r\nUpgrade: x\r\nConnection: keep-alive, upgrade\r\n",
}


@pytest.mark.parametrize("cut", [1, 20, 90, 150, 10_000])
@pytest.mark.parametrize("kind", list(UPGRADES))
def test_an_upgrade_that_is_not_granted_leaves_the_request_whole(
    port: int, kind: str, cut: int
) -> None:
    """The body had been lost with it: what Java sends by default had been answered with 400."""
    sent = b"POST /echo HTTP/1.1\r\n" + UPGRADES[kind] + b"\r\nbody"
    pieces = [piece for piece in (sent[:cut], sent[cut:]) if piece]
    came, _ = talk(port, *pieces, sent + sent, WHOLE, pause_s=0.02)
    assert came.count(b"<body|") == 3
    assert came.count(b"HTTP/1.1 200 ") == 4, "and the connection goes on"
    assert b"upgrade" not in came.lower()
    assert (b"connection" in came) == (kind == "kept"), "what else the header says stays"


def test_an_upgrade_with_a_chunked_body_and_one_without_a_body(port: int) -> None:
    asks = b"host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    chunked = b"transfer-encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"
    came, _ = talk(
        port,
        b"POST /echo HTTP/1.1\r\n" + asks + chunked,
        b"GET /echo HTTP/1.1\r\n" + asks + b"\r\n",
        pause_s=0.02,
    )
    assert b"<body|" in came
    assert b"<|" in came


def test_a_tunnel_is_refused_once_also_behind_an_upgrade(port: int) -> None:
    """It was answered as if the upgrade's method had been asked for again."""
    upgrade = b"POST /echo HTTP/1.1\r\n" + JAVA + b"\r\nbody"
    came, _ = talk(port, upgrade, b"CONNECT /echo HTTP/1.1\r\nhost: x\r\n\r\n", pause_s=0.05)
    assert came.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in came


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", 400, "bad_request"),
        (b"CONNECT / HTTP/1.1\r\nhost: x\r\n\r\n", 400, "bad_request"),
        (b"CONNECT http://x/a HTTP/1.1\r\nhost: x\r\n\r\n", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
        (b"GET / HT", 408, "too_slow"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 40_000, 431, "head_too_large"),
    ],
)
def test_what_no_handler_sees_is_refused_in_the_protocols_form(
    port: int, sent: bytes, code: int, reason: str
) -> None:
    came, _ = talk(port, sent)
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % code)
    told = json.loads(body)
    assert told["reason"] == reason
    assert told["error"]


@pytest.mark.parametrize("target", [b"http://x:99999999/", b"http://"])
def test_a_target_that_is_none_is_refused_on_a_kept_connection_too(
    port: int, target: bytes
) -> None:
    """The answer to the request before had been taken for its own: it got none."""
    asked = b"OPTIONS %b HTTP/1.1\r\nhost: x\r\n\r\n" % target
    for before in ((), (WHOLE,)):
        came, _ = talk(port, *before, asked, pause_s=0.05)
        head, _, body = came[came.index(b"HTTP/1.1 400 ") :].partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert json.loads(body)["reason"] == "bad_request"


@pytest.mark.parametrize(
    "asked",
    [
        b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET %b HTTP/1.0\r\nhost: x\r\n\r\n",
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
def test_a_whole_answer_is_what_the_parts_are(port: int, asked: bytes) -> None:
    """The short way of sending, against uvicorn's own."""

    def answers(path: bytes) -> list[bytes]:
        came, _ = talk(port, (asked % path) * 2)
        return [line for line in came.split(b"\r\n") if not line.startswith(b"date: ")]

    assert answers(b"/whole") == answers(b"/")


def test_an_answer_that_closes_ends_its_connection(port: int) -> None:
    came, after_s = talk(port, b"GET /close HTTP/1.1\r\nhost: x\r\n\r\n" + WHOLE)
    assert came.startswith(b"HTTP/1.1 503 ")
    assert came.count(b"HTTP/1.1 ") == 1
    assert came.lower().count(b"connection: close") == 1
    assert after_s < 0.9 * KEEP_ALIVE_S, "not by the keep-alive"
