"""How many connections a server holds, so that open files never run out.

A process out of files can't accept, and can't open anything else either: health checks fail while
it works. So the doors share what the process may open, less what it needs for itself.
"""

from __future__ import annotations

import resource

from serve.config import ServeConfig

_MOST_FILES = 2**16  # as many as are asked for where the system has no limit
_OWN_FILES = 64  # logs, weights, the loop, what is open for a moment
_RPC_PART = 8  # one of so many is for gRPC, where a connection carries many calls
_LEAST = 8


def raise_file_limit() -> None:
    """Let this process open as many files as it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections(config: ServeConfig) -> tuple[int, int]:
    """Return how many connections the HTTP door may hold, and how many the gRPC door."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    free = max(files - _OWN_FILES, 2 * _LEAST)
    rpc = 0 if config.grpc_port is None else max(free // _RPC_PART, _LEAST)
    http = free - rpc
    if config.max_connections is not None:
        http = min(http, config.max_connections)
    return http, max(rpc, _LEAST)
