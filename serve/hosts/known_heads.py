"""`KnownHeads`: heads of requests that came before, byte for byte, and what they say.

A client that keeps its connection sends the same head before every request, unless it numbers them.
To read one takes a dozen calls from the parser and as many objects; to know it again, one look-up.
Only heads are kept that are of the plain kind: HTTP/1.1, kept alive, with a length and nothing that
is negotiated; whatever else comes is read by the parser, as is a head that differs in one byte.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from serve.doors.headers import joined
from serve.doors.http_call import JOINED

_END = b"\r\n\r\n"
_LONGEST_BYTES = 1024
_MOST_HEADS = 256
_NEGOTIATING = frozenset((b"connection", b"expect", b"transfer-encoding", b"upgrade"))


class KnownHead(NamedTuple):
    """What a head says: its part of a request's scope, and how long it and its body are."""

    scope: dict[str, Any]
    headers: tuple[tuple[bytes, bytes], ...]
    length: int
    body_length: int


class KnownHeads:
    """The heads that one server has read; the oldest make room. Used in one event loop."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> KnownHead | None:
        """Return the head of a packet that is one request, whole, and nothing else."""
        end = data.find(_END, 0, _LONGEST_BYTES) + len(_END)
        head = self._heads.get(data[:end])
        if head is None or head.length + head.body_length != len(data):
            return None
        return head

    def learn(self, data: bytes, scope: dict[str, Any]) -> None:
        """Keep the head of a packet that was one whole request, with the scope it was given."""
        length = data.find(_END, 0, _LONGEST_BYTES) + len(_END)
        headers = scope["headers"]
        names = [name for name, _ in headers]
        if length < len(_END) or scope["http_version"] != "1.1" or _NEGOTIATING & set(names):
            return
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) != 1 or lengths[0] != b"%d" % (len(data) - length):
            return
        if len(self._heads) >= _MOST_HEADS:
            del self._heads[next(iter(self._heads))]
        kept = {key: scope[key] for key in ("method", "path", "raw_path", "query_string")}
        kept |= {"http_version": "1.1", JOINED: joined(headers)}
        self._heads[data[:length]] = KnownHead(kept, tuple(headers), length, len(data) - length)
