"""`DoorLink`: a door's end of its link to the engine's process.

Requests go with their samples in shared memory; where that is full they wait in order, for the
milliseconds that the engine's process takes to read. Once that process is gone, all that is open
ends as `device_failed`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.engine.open_request import OnEnd, Withdraw
from serve.engine.reply import Reply, RequestOptions
from serve.engine.served_engine import EarliestAnswer
from serve.link.frame_link import FrameLink
from serve.link.linked_engine import LinkedEngine, unserved_reply
from serve.link.payload_ring import PayloadRing
from serve.link.wire import unpack_refusal, unpack_reply
from serve.models.limits import RefusedError

_GONE = "the process of the engine has ended"
_POLL_S = 0.005


class _Asked(NamedTuple):
    """A request that is open."""

    engine: int
    arrival_s: float
    options: RequestOptions
    samples: int
    on_end: OnEnd


class DoorLink:
    """One door's link; made in its event loop. `on_state` is called with what doors must know."""

    def __init__(self, ring: PayloadRing, on_state: Callable[[dict[str, Any]], None]) -> None:
        self._ring = ring
        self._on_state = on_state
        self._numbers = itertools.count()
        self._open: dict[int, _Asked] = {}
        self._unsent: deque[Callable[[], bool]] = deque()  # in order, while the ring is full
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.stopped: asyncio.Future[float] = self._loop.create_future()
        self.engines: list[LinkedEngine] = []
        self._link = FrameLink(
            {
                "begin": self.begun.set_result,
                "state": self._state,
                "ended": self._ended,
                "failed": self._failed,
                "freed": self._freed,
                "answer": self._answer,
                "stop": self._stop,
            },
            self._lost,
        )

    async def connect(self, sock: socket.socket) -> None:
        """Take this end of the pair of sockets."""
        await self._loop.create_unix_connection(lambda: self._link, sock=sock)

    @property
    def is_open(self) -> bool:
        """Whether the engine's process is there."""
        return self._link.is_open

    def send(self, *message: Any) -> None:
        """Send a message that nobody waits for an answer to."""
        self._link.send(*message)

    async def ask(self, name: str, *values: Any) -> Any:
        """Ask the engine's process for something and await it. Raises RefusedError."""
        if not self.is_open:
            raise RefusedError("device_failed", _GONE)
        number = next(self._numbers)
        question = self._questions[number] = self._loop.create_future()
        self._link.send("ask", number, name, values)
        try:
            return await question
        finally:
            self._questions.pop(number, None)

    async def ended(self, timeout_s: float) -> bool:
        """Wait until nothing is open any more; return whether that was in time."""
        until_s = self._loop.time() + timeout_s
        while self._open and self._loop.time() < until_s:
            await asyncio.sleep(_POLL_S)
        return not self._open

    def open_request(
        self,
        index: int,
        samples: np.ndarray,
        arrival_s: float,
        options: RequestOptions,
        on_end: OnEnd,
    ) -> Withdraw:
        """Ask an engine to serve samples; return what withdraws that."""
        number = next(self._numbers)
        self._open[number] = _Asked(index, arrival_s, options, len(samples), on_end)
        if self.is_open:
            self._post(functools.partial(self._put, number, samples))
        else:
            self._loop.call_soon(self._fail, number, "device_failed")
        return functools.partial(self._withdraw, number)

    def _put(self, number: int, samples: np.ndarray) -> bool:
        """Write samples and announce them; return whether there was room."""
        place = self._ring.put(samples)
        if place is None:
            return False
        asked = self._open[number]
        about = (samples.dtype.str, samples.shape, *place)
        self._link.send("infer", number, asked.engine, *about, asked.arrival_s, asked.options)
        return True

    def _withdraw(self, number: int) -> None:
        def cancel() -> bool:
            self._link.send("cancel", number)
            return True

        if number in self._open:
            self._post(cancel)

    def _post(self, act: Callable[[], bool]) -> None:
        """Act now, or behind what waits for room."""
        if self._unsent or not act():
            self._unsent.append(act)

    # --- what the engine's process says ----------------------------------------------------------

    def _state(self, number: int, state: dict[str, Any]) -> None:
        self._on_state(state)
        self._link.send("ack", number)

    def _ended(self, number: int, packed: Sequence[Any], earliest: Sequence[float] | None) -> None:
        asked = self._open.pop(number, None)
        if asked is None:
            return
        if earliest is not None:
            self.engines[asked.engine].told_earliest = EarliestAnswer(*earliest)
        asked.on_end([unpack_reply(row, asked.options.tenant) for row in packed])

    def _failed(self, number: int, text: str) -> None:
        self._fail(number, f"execution failed: {text}")

    def _freed(self, filled: int) -> None:
        self._ring.free(filled)
        while self._unsent and self._unsent[0]():
            self._unsent.popleft()

    def _answer(self, number: int, refusal: Sequence[Any] | None, value: Any) -> None:
        question = self._questions.pop(number, None)
        if question is None or question.done():
            return
        if refusal is None:
            question.set_result(value)
        else:
            question.set_exception(unpack_refusal(refusal))

    def _stop(self, timeout_s: float) -> None:
        if not self.stopped.done():
            self.stopped.set_result(timeout_s)

    def _lost(self) -> None:
        for engine in self.engines:
            engine.lose(_GONE)
        self._unsent.clear()
        for number in tuple(self._open):
            self._fail(number, "device_failed")
        for question in self._questions.values():
            if not question.done():
                question.set_exception(RefusedError("device_failed", _GONE))
        if not self.begun.done():
            self.begun.set_exception(ConnectionError(_GONE))
        self._stop(0.0)

    def _fail(self, number: int, reason: str) -> None:
        asked = self._open.pop(number, None)
        if asked is not None:
            about = (asked.arrival_s, asked.options, asked.samples)
            replies: list[Reply] = [unserved_reply("failed", reason, *about)]
            asked.on_end(replies)
