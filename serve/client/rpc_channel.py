"""Connections to a gRPC door: `grpc://host:port`, or `grpcs://host:port` with TLS."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from serve.client.addresses import RPC_SCHEME, RPC_TLS_SCHEME
from serve.client.environment import trusted_pem
from serve.proto.names import SERVICE

_OPTIONS = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that comes back, or its replacement, is tried again within a slack, not after 20 s.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def rpc_channel(url: str) -> Any:
    """Return a channel that waits. Raises ClientError: SSL_CERT_FILE can't be read."""
    if url.startswith(RPC_TLS_SCHEME):
        return grpc.secure_channel(_address(url), _credentials(), options=_OPTIONS)
    return grpc.insecure_channel(_address(url), options=_OPTIONS)


def async_rpc_channel(url: str) -> Any:
    """Return a channel of the running event loop. Raises ClientError, as `rpc_channel`."""
    if url.startswith(RPC_TLS_SCHEME):
        return grpc.aio.secure_channel(_address(url), _credentials(), options=_OPTIONS)
    return grpc.aio.insecure_channel(_address(url), options=_OPTIONS)


def call_of(channel: Any, name: str, request_type: Any, response_type: Any) -> Any:
    """Return one method of the service on a channel of either kind."""
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )


def _address(url: str) -> str:
    return url.removeprefix(RPC_SCHEME).removeprefix(RPC_TLS_SCHEME).rstrip("/")


def _credentials() -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(trusted_pem())
