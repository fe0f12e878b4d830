"""Headers of HTTP and metadata of gRPC as one mapping: what comes several times is joined.

Commas join them, as in HTTP (RFC 9110, 5.3): of a deadline that comes twice both are read, and two
tokens are none.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable

from serve.models.limits import RefusedError

REQUEST_ID = "x-request-id"
_ALLOWED_ID = re.compile(r"[!-~]{1,128}")
_UPGRADING = (b"upgrade", b"http2-settings")  # headers, and what `connection` says of them
_MOST_DETAILS = 4000  # bytes: all trailers of a call have 8 KiB, what is more is not received
_WIDEST = 3  # bytes as which one of UTF-8 travels there: %C3


def joined(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return raw HTTP headers, whose names are in lower case, by name."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def joined_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Return a call's metadata by name, binary ones left out."""
    headers: dict[str, str] = {}
    for name, value in metadata or ():
        if isinstance(value, str):
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def metadata_text(text: str) -> str:
    """Return a text as metadata of gRPC take it, with what is not printable ASCII escaped.

    One such letter would cost the whole answer.
    """
    is_plain = text.isascii() and text.isprintable()
    return text if is_plain else text.encode("unicode_escape").decode("ascii")


def details_text(text: str) -> str:
    """Return as much of a text as the details of a call hold, in which most letters take more.

    Of a call whose trailers are too long its client learns that, and not how it ended.
    """
    if text.isascii() and _WIDEST * len(text) <= _MOST_DETAILS:
        return text
    size = 0
    for at, letter in enumerate(text):
        is_plain = " " <= letter <= "~" and letter != "%"
        size += 1 if is_plain else _WIDEST * len(letter.encode("utf-8", "replace"))
        if size > _MOST_DETAILS:
            return f"{text[:at]}..."
    return text


def without_upgrade(line: bytes, raw: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a head less its wish for another protocol: its first line and its other headers."""
    lines = [line]
    for name, value in raw:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(o for o in options if o.lower() not in _UPGRADING)
        if name not in _UPGRADING and (value or name != b"connection"):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join((*lines, b"", b""))


def check_not_encoded(content_encoding: str | None) -> None:
    """Raise RefusedError, `unsupported_encoding`, for a body that would have to be unpacked.

    A few bytes unpack to as many as anybody likes, so nothing is.
    """
    if content_encoding is None or content_encoding.strip().lower() in ("", "identity"):
        return
    raise RefusedError(
        "unsupported_encoding",
        f"Content-Encoding is {content_encoding!r:.80}, allowed identity: send the body unpacked",
    )


class RequestIds:
    """Gives ids that no other server gives; `give(sent)` keeps a client's own.

    What a client sends in `x-request-id` (metadata over gRPC) is taken if it is short and
    printable, so that it can't forge or flood a log; every answer names the id.
    """

    def __init__(self, prefix: str | None = None) -> None:
        self._prefix = prefix or secrets.token_hex(4)
        self._numbers = itertools.count()

    def give(self, sent: str | None) -> str:
        """Return the id of a request whose header holds `sent`."""
        if sent is not None and _ALLOWED_ID.fullmatch(sent):
            return sent
        return f"{self._prefix}-{next(self._numbers)}"
