"""Clients that do not read their streams: let go after a time, whatever is unsent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from serve.hosts.connections import slow_reader


async def asks_and_sleeps(streams: Any, **fields: Any) -> socket.socket:
    """Return a socket that has asked for a stream, and reads nothing."""
    body = json.dumps({"model": "lm", "prompt": "x", "temperature": 0, **fields}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    host, port = streams.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, head + body)
    return sock


def test_who_reads_nothing_for_too_long_is_let_go(
    serve_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_reader, "READ_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with serve_streams(prefix_cache=False) as streams:
            sock = await asks_and_sleeps(streams, max_tokens=50_000, stream=True)
            engine = streams.decoder.engine
            async with asyncio.timeout(15.0):
                while not engine.status().ended:
                    await asyncio.sleep(0.02)
                while streams.device.held_tokens:
                    await asyncio.sleep(0.005)
            assert engine.status().ended == {"dropped": 1}
            text = streams.server.metrics.render().decode()
            assert 'reason="too_slow"' in text
            reads = await streams.complete("y", max_tokens=5)
            assert reads.status_code == 200
            sock.close()

    asyncio.run(main())


def test_a_whole_answer_that_nobody_reads_holds_no_connection(
    serve_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the mark at which writing pauses: what waits is a connection that is to be closed."""
    monkeypatch.setattr(slow_reader, "READ_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with serve_streams(factor=0.002, prefix_cache=False) as streams:
            body = json.dumps(
                {"model": "lm", "prompt": "x", "temperature": 0, "max_tokens": 1500, "logprobs": 5}
            ).encode()
            head = (
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n" % len(body)
            )
            host, port = streams.url.removeprefix("http://").split(":")
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))
            await loop.sock_sendall(sock, head + body)
            own = sock.getsockname()[1]

            def is_held() -> bool:
                with open("/proc/net/tcp", encoding="ascii") as table:  # established to us
                    return any(f":{own:04X} 01 " in line for line in table)

            async with asyncio.timeout(20.0):
                while not streams.decoder.engine.status().ended:
                    await asyncio.sleep(0.02)
                assert is_held()
                while is_held():
                    await asyncio.sleep(0.05)
            sock.close()

    asyncio.run(main())
