"""Which addresses a client takes: HTTP or gRPC, each with TLS or without, or at a UNIX socket.

A UNIX socket stands where host and port would: `http://unix:/run/s.sock`, or short
`unix:/run/s.sock`, and `grpc://unix:/run/s.sock.grpc`: as a server prints its own.
"""

from __future__ import annotations

RPC_SCHEME, RPC_TLS_SCHEME = "grpc://", "grpcs://"
SCHEMES = ("http://", "https://", RPC_SCHEME, RPC_TLS_SCHEME)
TAKEN = (*SCHEMES, "unix:")
"""What an address may begin with."""

_SOCKET = "unix:"
_SOCKET_URL = f"http://{_SOCKET}"
_NOWHERE = "http://localhost"  # what a request to a socket names as its host


def is_rpc(url: str) -> bool:
    """Whether a URL asks for gRPC."""
    return url.startswith((RPC_SCHEME, RPC_TLS_SCHEME))


def whole_url(address: str) -> str:
    """Return an address as the clients keep it: that of a UNIX socket with the scheme of HTTP."""
    return f"http://{address}" if address.startswith(_SOCKET) else address


def socket_path(url: str) -> str | None:
    """Return the UNIX socket of an HTTP address, None for a host."""
    url = whole_url(url)
    return url.removeprefix(_SOCKET_URL) if url.startswith(_SOCKET_URL) else None


def request_base(url: str) -> str:
    """Return what the URLs of HTTP requests to an address begin with; no slash at the end."""
    return _NOWHERE if socket_path(url) is not None else url.rstrip("/")
