"""Which addresses a client takes: HTTP or gRPC, each with TLS or without."""

from __future__ import annotations

RPC_SCHEME, RPC_TLS_SCHEME = "grpc://", "grpcs://"
SCHEMES = ("http://", "https://", RPC_SCHEME, RPC_TLS_SCHEME)


def is_rpc(url: str) -> bool:
    """Whether a URL asks for gRPC."""
    return url.startswith((RPC_SCHEME, RPC_TLS_SCHEME))
