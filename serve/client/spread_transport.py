"""Requests spread over the replicas of a server: one transport to each, whichever protocol.

The two classes differ in who waits. Which replica is asked, what its answer tells and when the list
is read again is the same code (`replicas.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from serve.client.errors import InferError, TimedOutError, UnavailableError
from serve.client.infer_call import InferCall, InferResult, TimeLimits
from serve.client.replicas import Replicas

_LOOK_TIMEOUT_S = 5.0

T = TypeVar("T")


class Transport(Protocol):
    """Sends one request to one address and waits; `rest_transport`, `rpc_transport` have one."""

    def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError: ...
    def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same, awaited."""

    async def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError: ...
    async def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]: ...
    async def close(self) -> None: ...


class SpreadTransport:
    """Sends each request to a replica and waits; threads may share one."""

    def __init__(self, replicas: Replicas, make: Callable[[str], Transport]) -> None:
        """`make` returns the transport to one address. Raises what it raises."""
        self._replicas = replicas
        self._make = make
        self._lock = threading.Lock()
        self._transports = {url: make(url) for url in replicas.given}
        self._gone: list[Transport] = []

    def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        """Send one request to one replica and return how it ended."""
        url = self._replicas.choose()
        try:
            end = self._to(url).infer(infer_call, times)
        except BaseException:
            self._replicas.forgotten(url)
            raise
        _note(self._replicas, url, end)
        if self._replicas.should_look(_tag(end)):  # beside the answer, which does not wait for it
            threading.Thread(target=self._look, args=(url, _tag(end)), daemon=True).start()
        return end

    def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        """Return what a replica says of itself or of a model. Raises InferError."""
        for _ in self._replicas.urls[1:]:
            with contextlib.suppress(UnavailableError):
                return self._get(kind, model, timeout_s)
        return self._get(kind, model, timeout_s)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for transport in (*self._transports.values(), *self._gone):
                transport.close()

    def _get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        url = self._replicas.choose()
        try:
            answer = self._to(url).get(kind, model, timeout_s)
        except InferError as error:
            _note(self._replicas, url, error)
            raise
        except BaseException:
            self._replicas.forgotten(url)
            raise
        self._replicas.answered(url)
        return answer

    def _look(self, url: str, tag: str) -> None:
        # Whatever comes of it: the next answer with that tag has it looked at again.
        with contextlib.suppress(InferError, RuntimeError, ValueError):
            self._replicas.name(self._to(url).get("server", None, _LOOK_TIMEOUT_S), tag)
        for transport in self._let_go():
            transport.close()

    def _let_go(self) -> list[Transport]:
        """Return those that the last list lacked already; what was under way there has ended."""
        with self._lock:
            ended, self._gone = self._gone, _taken(self._transports, self._replicas.urls)
        return ended

    def _to(self, url: str) -> Transport:
        with self._lock:
            transport = self._transports.get(url)
            if transport is None:
                transport = self._transports[url] = self._make(url)
            return transport


class AsyncSpreadTransport:
    """The same, awaited, any number of requests at once."""

    def __init__(self, replicas: Replicas, make: Callable[[str], AsyncTransport]) -> None:
        self._replicas = replicas
        self._make = make
        self._transports = {url: make(url) for url in replicas.given}
        self._gone: list[AsyncTransport] = []
        self._looking: asyncio.Task[None] | None = None

    async def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        """Send one request to one replica and return how it ended."""
        url = self._replicas.choose()
        try:
            end = await self._to(url).infer(infer_call, times)
        except BaseException:
            self._replicas.forgotten(url)
            raise
        _note(self._replicas, url, end)
        if self._replicas.should_look(_tag(end)):
            self._looking = asyncio.create_task(self._look(url, _tag(end)))
        return end

    async def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        """Return what a replica says of itself or of a model. Raises InferError."""
        for _ in self._replicas.urls[1:]:
            with contextlib.suppress(UnavailableError):
                return await self._get(kind, model, timeout_s)
        return await self._get(kind, model, timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        for transport in (*self._transports.values(), *self._gone):
            await transport.close()

    async def _get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        url = self._replicas.choose()
        try:
            answer = await self._to(url).get(kind, model, timeout_s)
        except InferError as error:
            _note(self._replicas, url, error)
            raise
        except BaseException:
            self._replicas.forgotten(url)
            raise
        self._replicas.answered(url)
        return answer

    async def _look(self, url: str, tag: str) -> None:
        with contextlib.suppress(InferError, RuntimeError, ValueError):
            self._replicas.name(await self._to(url).get("server", None, _LOOK_TIMEOUT_S), tag)
        ended, self._gone = self._gone, _taken(self._transports, self._replicas.urls)
        for transport in ended:
            await transport.close()

    def _to(self, url: str) -> AsyncTransport:
        transport = self._transports.get(url)
        if transport is None:
            transport = self._transports[url] = self._make(url)
        return transport


def _note(replicas: Replicas, url: str, end: InferResult | InferError) -> None:
    """Note how a request to a replica ended; one that says nothing in time is left as well."""
    if isinstance(end, UnavailableError | TimedOutError):
        replicas.failed(url)
    elif isinstance(end, InferError):
        replicas.answered(url, end.earliest_finish_s)
    else:
        replicas.answered(url, end.earliest_finish_s, end.capacity_qps)


def _taken(transports: dict[str, T], urls: Collection[str]) -> list[T]:
    """Take out the transports to addresses that are not in use any more."""
    return [transports.pop(url) for url in tuple(transports) if url not in urls]


def _tag(end: InferResult | InferError) -> str:
    return "" if isinstance(end, InferError) else end.replica_tag
