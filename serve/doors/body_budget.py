"""`BodyBudget`: how many bytes of requests a server holds at once, over both doors.

A request takes its bytes as they come and gives them back when it is answered. Where they run out,
the request that has been arriving for longest makes room, once it has had `GRACE_S`: slow clients
can't keep others out, and who sends at once never waits for long. Where only whole requests hold
them for as long, a newcomer is refused: that is load.

gRPC hands a message over whole and does not say how long it is: there a call takes what the largest
one needs while its message arrives, and gives the rest back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

from serve.models.limits import RefusedError

GRACE_S = 0.1
BODY_TIMEOUT_S = 30.0  # a client that writes byte by byte does not hold its connection for ever
_RETRY_AFTER_S = 0.1


class BodyBudget:
    """The bytes of one server; used in one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._arriving: dict[InflightBody, None] = {}  # in the order of their first byte
        self._waiting: deque[_Waiting] = deque()
        self._eviction: asyncio.TimerHandle | None = None

    def body(self) -> InflightBody:
        """Return what holds the bytes of one request; enter it for the length of the request."""
        return InflightBody(self)

    async def take(self, body: InflightBody, count: int) -> None:
        """Take bytes for a request, waiting for them if need be. Raises RefusedError."""
        if not self._waiting and self.used_bytes + count <= self.max_bytes:
            self._grant(body, count)
            return
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop.create_future(), body, count, loop.time() + GRACE_S)
        self._waiting.append(waiting)
        self._make_room()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)
            raise

    def take_at_once(self, body: InflightBody, count: int) -> bool:
        """Take bytes that are there already, if there is room and nobody waits for it."""
        if self._waiting or self.used_bytes + count > self.max_bytes:
            return False
        self.used_bytes += count
        body.num_bytes += count
        return True

    def give(self, body: InflightBody, count: int) -> None:
        """Give bytes of a request back."""
        self.used_bytes -= count
        body.num_bytes -= count
        if self._waiting:
            self._make_room()

    def arrived(self, body: InflightBody) -> None:
        """Note that a request arrives no more: it is whole, or over."""
        self._arriving.pop(body, None)

    def refusal(self) -> RefusedError:
        """Return what a request gets for which there is no room."""
        text = f"requests in flight hold {self.used_bytes} bytes, allowed {self.max_bytes}"
        return RefusedError(
            "queue_full", f"{text} (max_inflight_bytes)", retry_after_s=_RETRY_AFTER_S
        )

    def _grant(self, body: InflightBody, count: int) -> None:
        if not body.num_bytes:
            body.start_s = asyncio.get_running_loop().time()
            self._arriving[body] = None
        self.used_bytes += count
        body.num_bytes += count

    def _make_room(self) -> None:
        """Let in who fits, first come first served; have the slowest make room for the others."""
        while self._waiting:
            first = self._waiting[0]
            if not first.granted.done():
                if self.used_bytes + first.num_bytes > self.max_bytes:
                    break
                self._grant(first.body, first.num_bytes)
                first.granted.set_result(None)
            self._waiting.popleft()
        if self._eviction is not None:
            self._eviction.cancel()
            self._eviction = None
        if self._waiting:
            self._evict()

    def _evict(self) -> None:
        """Evict the slowest arrival when it is time, or refuse who waits: there is none."""
        self._eviction = None
        loop = asyncio.get_running_loop()
        slowest = next((body for body in self._arriving if not body.is_evicted), None)
        if slowest is not None and loop.time() >= slowest.start_s + GRACE_S:
            slowest.evict()
            return
        first = self._waiting[0]
        if slowest is None and loop.time() >= first.refused_at_s:
            self._waiting.popleft()
            if not first.granted.done():
                first.granted.set_exception(self.refusal())
            self._eviction = loop.call_at(loop.time(), self._make_room)
            return
        at_s = first.refused_at_s if slowest is None else slowest.start_s + GRACE_S
        self._eviction = loop.call_at(at_s, self._make_room)


class _Waiting(NamedTuple):
    """A request that waits for bytes; refused at a time, unless somebody slower makes room."""

    granted: asyncio.Future[None]
    body: InflightBody
    num_bytes: int
    refused_at_s: float


class InflightBody:
    """The bytes of one request, as an async context: leaving it gives them back."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._timeout: asyncio.Timeout | None = None
        self.num_bytes = 0
        self.start_s = 0.0
        self.is_evicted = False

    async def take(self, count: int) -> None:
        """Take bytes before they are kept. Raises RefusedError."""
        await self._budget.take(self, count)

    def take_at_once(self, count: int) -> bool:
        """Take bytes that have come already, unless that would mean to wait."""
        return self._budget.take_at_once(self, count)

    def take_or_refuse(self, count: int) -> None:
        """Take bytes that have come already. Raises RefusedError where there is no room."""
        if not self._budget.take_at_once(self, count):
            raise self._budget.refusal()

    def shrink(self, count: int) -> None:
        """Keep `count` of the bytes that were taken."""
        self._budget.give(self, self.num_bytes - count)

    def arriving(self) -> _Arrival:
        """Bound the arrival of the body in time, as an async context.

        Raises RefusedError: `too_slow`, `queue_full`.
        """
        return _Arrival(self)

    def begin_arrival(self) -> asyncio.Timeout:
        """Return the time limit of an arrival that begins now."""
        self._timeout = asyncio.timeout(BODY_TIMEOUT_S)
        return self._timeout

    def end_arrival(self) -> None:
        """Note that nothing arrives any more."""
        self._timeout = None
        self._budget.arrived(self)

    def too_slow(self) -> RefusedError:
        """Return what a request gets whose arrival took too long, or made room for others."""
        if self.is_evicted:
            return self._budget.refusal()
        text = f"{self.num_bytes} bytes of the body or less arrived within {BODY_TIMEOUT_S:g} s"
        return RefusedError("too_slow", f"{text}, and not its end")

    def evict(self) -> None:
        """End the arrival: others need the bytes."""
        self.is_evicted = True
        assert self._timeout is not None, "only what arrives is evicted"
        if not self._timeout.expired():  # else it ends anyway, and takes no other time
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """Give all bytes back: the request is answered."""
        self._budget.arrived(self)
        self._budget.give(self, self.num_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class _Arrival:
    """The time in which a body arrives; a class and no generator, since every request enters it."""

    __slots__ = ("_body", "_timeout")

    def __init__(self, body: InflightBody) -> None:
        self._body = body
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        self._timeout = self._body.begin_arrival()
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._timeout is not None, "entered"
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise self._body.too_slow() from None
        finally:
            self._body.end_arrival()
