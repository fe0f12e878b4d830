"""Clients that send much and never end: heads, trailers, bodies over HTTP; messages over gRPC.

Each is one open socket per connection that sends as much as is taken of it, then stays.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

from serve.proto.names import SERVICE

_PIECE = 65_000
_TIMEOUT_S = 1.0
MESSAGE_BYTES = 15 * 2**20
_UNSENT_BYTES = 1000  # of a message: it never ends
_WINDOW_BYTES = 65_535  # of HTTP/2, until it is told another
_FRAME_BYTES = 16_384

_LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def attacks(model: str) -> dict[str, Callable[[str, str], socket.socket]]:
    """Return what opens one connection, by name; called with the HTTP and the gRPC address."""
    infer = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: x\r\n".encode()
    line = b"a" * _PIECE + b"\r\n"
    declared = b"content-length: %d\r\n\r\n" % MESSAGE_BYTES
    return {
        "trailers": lambda http, _: send(http, _LIVE + b"0\r\n", b"x-trailer: " + line, 160),
        "one_trailer": lambda http, _: send(http, _LIVE + b"0\r\nx: ", b"a" * _PIECE, 160),
        "heads": lambda http, _: send(http, infer, b"x-more: " + line, 160),
        "bodies": lambda http, _: send(http, infer + declared, b"b" * _PIECE, 240),
        "messages": lambda _, rpc: send_message(rpc, "ModelInfer"),
        "open_messages": lambda _, rpc: send_message(rpc, "ServerLive"),
    }


def send(address: str, head: bytes, piece: bytes, count: int) -> socket.socket:
    """Open a connection that sends a head and then pieces, as far as they are taken."""
    sock = _connect(address)
    with contextlib.suppress(OSError):
        sock.sendall(head)
        for _ in range(count):
            sock.sendall(piece)
    return sock


def send_message(address: str, method: str) -> socket.socket:
    """Open a connection of HTTP/2 that sends one gRPC message but its last 1,000 bytes."""
    sock = _connect(address)
    with contextlib.suppress(OSError):
        _Http2Sender(sock).send_message(f"/{SERVICE}/{method}", MESSAGE_BYTES)
    return sock


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)


class _Http2Sender:
    """As much of HTTP/2 (RFC 9113) as one slow message takes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._windows = [_WINDOW_BYTES, _WINDOW_BYTES]  # of the connection, of stream 1
        self._unread = b""
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))

    def send_message(self, path: str, size: int) -> None:
        """Send a message as far as the windows allow. Raises OSError when the server ends it."""
        fields = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        head = b"".join(  # literal fields without indexing
            b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self._sock.sendall(_frame(1, 4, 1, head))
        left = b"\x00" + struct.pack(">I", size) + bytes(size - _UNSENT_BYTES)
        while left:
            room = min(_FRAME_BYTES, *self._windows, len(left))
            if room <= 0:
                self._read()
                continue
            self._sock.sendall(_frame(0, 0, 1, left[:room]))
            left = left[room:]
            self._windows = [window - room for window in self._windows]

    def _read(self) -> None:
        came = self._sock.recv(65_536)
        if not came:
            raise ConnectionResetError
        self._unread += came
        while len(self._unread) >= 9:
            length = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < 9 + length:
                return
            kind, flags = self._unread[3], self._unread[4]
            stream = int.from_bytes(self._unread[5:9], "big")
            body, self._unread = self._unread[9 : 9 + length], self._unread[9 + length :]
            self._take(kind, flags, stream, body)

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == 8:  # WINDOW_UPDATE
            self._windows[stream] += int.from_bytes(body, "big")
        elif kind == 4 and not flags & 1:  # SETTINGS
            for at in range(0, len(body), 6):
                if int.from_bytes(body[at : at + 2], "big") == 4:  # the first window of streams
                    self._windows[1] += int.from_bytes(body[at + 2 : at + 6], "big") - _WINDOW_BYTES
            self._sock.sendall(_frame(4, 1, 0, b""))
        elif kind == 6 and not flags & 1:  # PING
            self._sock.sendall(_frame(6, 1, 0, body))
        elif kind in (3, 7):  # RST_STREAM, GOAWAY
            raise ConnectionResetError


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    head = len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + body
