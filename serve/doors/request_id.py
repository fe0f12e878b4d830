"""Request ids: every request has one, the client's own or one of ours, and every answer names it.

The carrier is `x-request-id`, a header over HTTP and metadata over gRPC. What a client sends is
taken if it is short and printable, so that it can't forge or flood a log.
"""

from __future__ import annotations

import itertools
import re
import secrets

HEADER = "x-request-id"
_ALLOWED = re.compile(r"[!-~]{1,128}")


class RequestIds:
    """Gives ids that no other server gives; `give(sent)` keeps a client's own."""

    def __init__(self, prefix: str | None = None) -> None:
        self._prefix = prefix or secrets.token_hex(4)
        self._numbers = itertools.count()

    def give(self, sent: str | None) -> str:
        """Return the id of a request whose header holds `sent`."""
        if sent is not None and _ALLOWED.fullmatch(sent):
            return sent
        return f"{self._prefix}-{next(self._numbers)}"


def sent_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the id in raw HTTP headers, if there is one."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode("latin-1")
    return None
