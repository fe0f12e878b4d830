"""Clients without a token that send much and slowly, to a server process, beside others that ask.

What nobody may send costs the server next to nothing; what anybody may send stays in the budget.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serve.client import Client
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import SERVICE

pytestmark = [pytest.mark.alone, pytest.mark.slow]

SECRET = "s" * 20
MIB = 2**20
MESSAGE_BYTES = 15 * MIB
SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)


def resident_mib(server: Any) -> float:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


@contextlib.contextmanager
def asking(url: str, token: str | None) -> Iterator[list[float]]:
    """Keep asking; yields the latencies in seconds."""
    latencies_s: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        with Client(url, "tiny", slo_ms=20_000, token=token) as client:
            while not is_over.wait(0.005):
                latencies_s.append(client.infer(SAMPLE).latency_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield latencies_s
    finally:
        is_over.set()
        thread.join()


def hold(
    server: Any, head: bytes, piece: bytes, count: int, connections: int
) -> list[socket.socket]:
    """Open connections that send a head and then pieces, as much as is taken."""
    opened = []
    host, port = server.address.split(":")
    for _ in range(connections):
        sock = socket.create_connection((host, int(port)), timeout=1.0)
        opened.append(sock)
        with contextlib.suppress(OSError):
            sock.sendall(head)
            for _ in range(count):
                sock.sendall(piece)
    return opened


def hold_messages(server: Any, connections: int, method: str) -> list[socket.socket]:
    """Open HTTP/2 connections, each with one message of 15 MiB less 1,000 bytes."""
    opened = []
    host, port = server.rpc_address.split(":")
    for _ in range(connections):
        sock = socket.create_connection((host, int(port)), timeout=1.0)
        opened.append(sock)
        sender = Http2Sender(sock)
        with contextlib.suppress(OSError):
            sender.send_message(f"/{SERVICE}/{method}", MESSAGE_BYTES, MESSAGE_BYTES - 1000)
    return opened


class Http2Sender:
    """As much of HTTP/2 as one slow gRPC message takes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._window = {0: 65_535, 1: 65_535}
        self._unread = b""
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))

    def send_message(self, path: str, declared: int, count: int) -> None:
        """Send the first `count` bytes of a message of `declared`, as the windows allow."""
        fields = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        head = b"".join(
            b"\x00" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode()
            for k, v in fields.items()
        )
        self._sock.sendall(frame(1, 4, 1, head))
        left = b"\x00" + struct.pack(">I", declared) + bytes(count)
        while left:
            room = min(16_384, *self._window.values(), len(left))
            if room <= 0:
                self._read()
                continue
            self._sock.sendall(frame(0, 0, 1, left[:room]))
            left = left[room:]
            self._window = {key: value - room for key, value in self._window.items()}

    def _read(self) -> None:
        self._unread += self._sock.recv(65_536) or self._ended()
        while len(self._unread) >= 9:
            length = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < 9 + length:
                return
            kind, flags = self._unread[3], self._unread[4]
            stream = int.from_bytes(self._unread[5:9], "big")
            body, self._unread = self._unread[9 : 9 + length], self._unread[9 + length :]
            if kind == 8:
                self._window[stream] += int.from_bytes(body, "big")
            elif kind == 4 and not flags & 1:
                for at in range(0, length, 6):
                    if int.from_bytes(body[at : at + 2], "big") == 4:
                        self._window[1] += int.from_bytes(body[at + 2 : at + 6], "big") - 65_535
                self._sock.sendall(frame(4, 1, 0, b""))
            elif kind == 6 and not flags & 1:
                self._sock.sendall(frame(6, 1, 0, body))
            elif kind in (3, 7):
                self._ended()

    def _ended(self) -> bytes:
        raise OSError("the server ended it")


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    head = len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + body


@pytest.fixture
def server(running, profile_file, tmp_path) -> Iterator[Any]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice infer {SECRET}\n")
    with running(profile_file, "--no-ray", "--set", f"tokens_file={tokens}") as process:
        yield process


INFER = b"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: x\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
ATTACKS = {
    "trailers": (LIVE + b"0\r\n", b"x-trailer: " + b"a" * 65_000 + b"\r\n", 160),
    "one trailer": (LIVE + b"0\r\nx: ", b"a" * 65_536, 160),
    "heads": (INFER, b"x-more: " + b"a" * 65_000 + b"\r\n", 160),
    "bodies": (INFER + b"content-length: 15728640\r\n\r\n", b"b" * 65_536, 239),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_clients_without_a_token_cost_64_kib_a_connection(server: Any, attack: str):
    check(server, lambda: hold(server, *ATTACKS[attack], connections=40), most_mib=40 / 16 + 8)


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive", "ModelMetadata"])
def test_messages_of_clients_without_a_token_are_not_read(server: Any, method: str):
    check(server, lambda: hold_messages(server, 40, method), most_mib=40 / 4 + 16)


def check(server: Any, attack: Any, *, most_mib: float) -> None:
    with asking(server.url, SECRET) as latencies_s:
        time.sleep(2)
        quiet, before_mib = list(latencies_s), resident_mib(server)
        latencies_s.clear()
        opened = attack()
        time.sleep(1)
        grown_mib = resident_mib(server) - before_mib
        busy = list(latencies_s)
    for sock in opened:
        sock.close()
    p99_s = [float(np.quantile(values, 0.99)) for values in (quiet, busy)]
    print(f"{grown_mib:.1f} MiB more; others' p99 {p99_s[0] * 1e3:.1f} -> {p99_s[1] * 1e3:.1f} ms")
    assert grown_mib < most_mib
    assert p99_s[1] < 4 * p99_s[0] + 0.02  # twice on a quiet machine


def test_slow_messages_of_anybody_stay_within_the_budget(running, profile_file):
    options = ("--no-ray", "--set", f"max_inflight_bytes={64 * MIB}")
    with running(profile_file, *options) as server:
        channel = grpc.insecure_channel(server.rpc_address)
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        message = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(4)])
        message.inputs.add(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
        infer(message, timeout=10)
        before_mib = resident_mib(server)
        opened = hold_messages(server, 40, "ModelInfer")
        grown_mib = resident_mib(server) - before_mib
        start_s = time.monotonic()
        infer(message, timeout=10)  # the slowest makes room
        took_s = time.monotonic() - start_s
        for sock in opened:
            sock.close()
        channel.close()
    print(f"{grown_mib:.1f} MiB more, another call took {took_s * 1e3:.0f} ms")
    assert grown_mib < 64 * 1.5 + 16
    assert took_s < 1.0


def test_open_files_do_not_run_out(profile_file: Path):
    """300 idle connections against 256 files: health checks had failed."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
    code += "import runpy; sys.argv[0] = 'serve'; runpy.run_module('serve', run_name='__main__')"
    command = [
        sys.executable, "-c", code, "serve", "--no-ray", "--port", "0", "--device", "timed",
        "--profile", str(profile_file), "--set", "input_shape=1,2,2", "--set", "model_name=tiny",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().partition("on ")[2].split()[0]
        host, port = url.removeprefix("http://").split(":")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        idle = []
        for _ in range(400):
            idle.append(socket.create_connection((host, int(port)), timeout=5))
        codes = [httpx.get(f"{url}/v2/health/live", timeout=5).status_code for _ in range(20)]
        for sock in idle:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert codes == [200] * 20
    finally:
        process.terminate()
        process.communicate(timeout=30)
