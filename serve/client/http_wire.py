"""HTTP as the replayer's client needs it: many requests at once, each as cheap as can be.

aiohttp rather than httpx: httpx's pool walks all its connections for every request, so that the
sender slows down exactly when a server stands still and requests pile up (measured at 500
requests/s: 81 requests/s and falling; aiohttp keeps the rate).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import aiohttp
from aiohttp.connector import Connection

from serve.client.environment import bearer

_KEEP_ALIVE_S = 4.0  # below the 5 s after which uvicorn closes an idle connection
_OTHER_FILES = 64
_NOT_SENT = ("User-Agent", "Accept", "Accept-Encoding")


class WireError(RuntimeError):
    """No answer came; the text is the kind of failure, alike for all failures of that kind."""


class Response(NamedTuple):
    """A whole HTTP answer; header names are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire(Protocol):
    """Sends one HTTP request and returns its answer, many at once. Raises WireError.

    A connection may take `connect_s` to be made (None: any time).
    """

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes,
        connect_s: float | None = None,
    ) -> Response: ...

    async def close(self) -> None: ...


class HttpWire:
    """HTTP over kept connections, as many at once as the process may open files.

    Connections are made in the event loop of the first request, and only used there.
    """

    def __init__(self, path: str | None = None) -> None:
        """Connect to a UNIX socket at `path`, whatever host a URL names."""
        self._path = path
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes,
        connect_s: float | None = None,
    ) -> Response:
        if self._session is None:
            self._session = _session(self._path)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        try:
            async with self._session.request(
                method, url, headers=headers, data=content or None, timeout=timeout
            ) as answer:
                return Response(answer.status, answer.headers, await answer.read())
        except (aiohttp.ClientError, OSError) as error:
            raise WireError(type(error).__name__) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class _DroppingAnswer(aiohttp.ClientResponse):
    """An answer that gives its connection up when the server says that another should be asked.

    A replica that drains or hangs would keep its clients: the retry would go to it again.
    """

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        await super().start(connection)
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE and protocol is not None:
            if self.content.is_eof():
                protocol.close()  # it lies with the kept ones already
            else:
                protocol.force_close()  # once the answer is read
        return self


def _session(path: str | None) -> aiohttp.ClientSession:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = allowed == resource.RLIM_INFINITY
    options: dict[str, Any] = {
        "limit": 0 if unlimited else max(allowed - _OTHER_FILES, _OTHER_FILES),
        "keepalive_timeout": _KEEP_ALIVE_S,
    }
    connector = (
        aiohttp.TCPConnector(**options) if path is None else aiohttp.UnixConnector(path, **options)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        headers=bearer(),
        response_class=_DroppingAnswer,
        skip_auto_headers=_NOT_SENT,
        auto_decompress=False,
    )
