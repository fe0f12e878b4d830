"""`KnownHeads`: heads of requests that came before, byte for byte, and what they say.

A client that keeps its connection sends the same head before every request, unless it numbers them;
or the same but for the time that it gives. To read one takes a dozen calls from the parser and as
many objects; to know it again, one look-up. Only heads are kept that are of the plain kind:
HTTP/1.1, kept alive, with a length and nothing that is negotiated; whatever else comes is read by
the parser, as is a head that differs in one byte, of its SLO's number apart.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from serve.doors.headers import joined
from serve.doors.http_call import JOINED
from serve.proto.names import SLO_HEADER

_END = b"\r\n\r\n"
_LONGEST_BYTES = 1024
_MOST_HEADS = 256
_SLO = SLO_HEADER.encode()
_SLO_LINE = re.compile(rb"\r\n%b:[ \t]*([0-9.]{1,24})[ \t]*(?=\r\n)" % _SLO, re.IGNORECASE)
_NEGOTIATING = frozenset((b"connection", b"expect", b"transfer-encoding", b"upgrade"))


class KnownHead(NamedTuple):
    """What a head says: its part of a request's scope, and how long it and its body are.

    `slo` is the number in it that another head of its kind may have differently, if there is one.
    """

    scope: dict[str, Any]
    headers: tuple[tuple[bytes, bytes], ...]
    length: int
    body_length: int
    slo: bytes

    def giving(self, slo: bytes, length: int) -> KnownHead:
        """Return the same head, so long, with another SLO."""
        headers = tuple((name, slo if name == _SLO else value) for name, value in self.headers)
        told = {**self.scope[JOINED], SLO_HEADER: slo.decode("ascii")}
        return KnownHead({**self.scope, JOINED: told}, headers, length, self.body_length, slo)


class KnownHeads:
    """The heads that one server has read; the oldest make room. Used in one event loop."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> KnownHead | None:
        """Return the head of a packet that is one request, whole, and nothing else."""
        length = data.find(_END, 0, _LONGEST_BYTES) + len(_END)
        kind, slo = _kind_of(data[:length])
        head = self._heads.get(kind)
        if head is None or length + head.body_length != len(data):
            return None
        return head if slo == head.slo else head.giving(slo, length)

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
        kind, slo = _kind_of(data[:length])
        self._heads[kind] = KnownHead(kept, tuple(headers), length, len(data) - length, slo)


def _kind_of(head: bytes) -> tuple[bytes, bytes]:
    """Return a head without the number of its only SLO, and that number; else it, and nothing."""
    found = _SLO_LINE.search(head)
    if found is None or head.lower().count(b"\r\n%b:" % _SLO) > 1:
        return head, b""
    return head[: found.start(1)] + head[found.end(1) :], found.group(1)
