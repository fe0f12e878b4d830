"""`build_door`: the ASGI app of a server, with the OpenAI door in front where it has decoders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from starlette.types import ASGIApp

from serve.doors.rest import RestDoor
from serve.doors.server import Server
from serve.openai.door import OpenAIDoor


def build_door(
    server: Server,
    while_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]],
) -> ASGIApp:
    """Return what the hosts serve; `while_ready` is entered between warm-up and drain."""
    rest = RestDoor(server, while_ready=while_ready)
    return OpenAIDoor(server, rest) if server.models.decoders else rest
