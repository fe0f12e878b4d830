"""How long ago the last byte came that lies, or lay, in a socket: the kernel knows it of TCP.

A loop that was held up knows of what it reads next only that it came meanwhile. Linux keeps, for
each connection, when it last received data (`tcpi_last_data_recv`, tcp(7)), to a tick: 4 ms as
most kernels are built. For a request in one packet that is its age, and for any other at least
that much.
"""

from __future__ import annotations

import socket
import sys
from typing import Protocol

_NUM_BYTES = 56
_LAST_RECEIVED = slice(52, 56)  # of struct tcp_info, in milliseconds


class HasOptions(Protocol):
    """A socket, or what a transport gives for one."""

    family: int

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def last_received_s(sock: HasOptions | None) -> float | None:
    """Return how long ago data last came, in seconds; None where it is no TCP, or no Linux."""
    if sock is None or not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _NUM_BYTES)
    except OSError:
        return None
    return int.from_bytes(info[_LAST_RECEIVED], sys.byteorder) * 1e-3


def is_unix(sock: HasOptions | None) -> bool:
    """Whether a socket is one of this host alone."""
    return sock is not None and sock.family == socket.AF_UNIX
