"""Clients that never finish a request's head: they are told so, and their connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

import serve.hosts.bounded_request_head
from serve.hosts.uvicorn_listener import bind, uvicorn_config

pytestmark = pytest.mark.alone

TIMEOUT_S = 0.3
WHOLE = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope, receive, send) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Serve `app` as our doors are served, with little patience."""
    monkeypatch.setattr(serve.hosts.bounded_request_head, "HEAD_TIMEOUT_S", TIMEOUT_S)
    config = uvicorn_config(app, None, lifespan="off")
    config.timeout_keep_alive = 1  # `talk` reads until the server closes an idle connection
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
        start_s = time.perf_counter()
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        came = await asyncio.wait_for(reader.read(), 10)
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
