"""`HttpCall`: one HTTP request on its way through a door, and what a listener tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope

from serve.access.guard import Caller, Guard
from serve.doors.headers import REQUEST_ID, RequestIds, joined

FIRST_BYTE = "supernet.first_byte_s"
"""In the scope: when a request's first byte was there, on `time.monotonic`."""
WHOLE = "supernet.is_whole"
"""In the scope of a request whose body has come."""
JOINED = "supernet.headers"
"""In the scope of a request whose head is known: its headers, as `headers.joined` gives them."""
WHEN_GONE = "supernet.when_gone"
"""In the scope: has a function called when the client goes away, returns what takes that back."""
WHY_GONE = "supernet.why_gone"
"""In the scope: says why the client has gone, `cancelled`, or `too_slow` to read."""

_READ_ON_BYTES = 64 * 2**10  # of a body that is not wanted, to keep its connection
_NOBODY = Caller()


class HttpCalls:
    """Makes the calls of one door; `lag_s` is what its event loop keeps requests waiting."""

    def __init__(self, clock: Callable[[], float], lag_s: Callable[[], float]) -> None:
        self._clock = clock
        self._lag_s = lag_s
        self._ids = RequestIds()

    def call(self, scope: Scope, receive: Receive) -> HttpCall:
        """Return a request with its arrival and its id."""
        first_byte_s = scope.get(FIRST_BYTE)
        waited_s = self._lag_s() if first_byte_s is None else time.monotonic() - first_byte_s
        headers = scope.get(JOINED) or joined(scope["headers"])
        request_id = self._ids.give(headers.get(REQUEST_ID))
        return HttpCall(scope, receive, headers, self._clock() - max(0.0, waited_s), request_id)


class HttpCall:
    """One request: its scope, its headers, when its first byte was there, who calls."""

    __slots__ = ("arrival_s", "caller", "headers", "is_read", "receive", "request_id", "scope")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        headers: Mapping[str, str],
        arrival_s: float,
        request_id: str,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.arrival_s = arrival_s
        self.request_id = request_id
        self.headers = headers
        self.caller = _NOBODY
        self.is_read = False

    @property
    def peer(self) -> str:
        """The address of the other end of the connection."""
        client = self.scope.get("client")
        return client[0] if client else ""

    def is_kept(self) -> bool:
        """Whether what is unread of the request is short enough to keep its connection.

        Who waits to be told to go on (`Expect`) may never send it, and then sends another request.
        """
        if self.is_read or WHOLE in self.scope:
            return True
        if "expect" in self.headers:
            return False
        length = self.headers.get("content-length", "0")
        is_short = length.isdigit() and int(length) <= _READ_ON_BYTES
        return is_short and "transfer-encoding" not in self.headers

    def identify(self, guard: Guard, scope: str) -> Caller:
        """Return who calls. Raises RefusedError."""
        headers, tenant_header = self.headers, guard.tenant_header
        return guard.identify(
            scope,
            authorization=headers.get("authorization"),
            peer=self.peer,
            origin=headers.get("origin"),
            forwarded=headers.get("x-forwarded-for"),
            host=headers.get("host"),
            tenant=None if tenant_header is None else headers.get(tenant_header),
        )

    def memory_owner(self, guard: Guard) -> str:
        """Return whose regions of shared memory the caller's are. Raises RefusedError."""
        forwarded = self.headers.get("x-forwarded-for")
        return guard.memory_owner(self.caller, peer=self.peer, forwarded=forwarded)


def inference_path(scope: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return model and version of an inference request, None for any other.

    Below a prefix (`root_path`) none is recognised, and the router finds it.
    """
    if scope["method"] != "POST" or scope.get("root_path"):
        return None
    match scope["path"].split("/"):
        case ["", "v2", "models", model, "infer"] if model:
            return model, None
        case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return model, version
        case _:
            return None
