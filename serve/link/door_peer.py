"""`DoorPeer`: one door's process, as the engine's process knows it: what it asks is done here."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from serve.access.guard import Caller
from serve.doors.server import Server
from serve.engine.open_request import Withdraw
from serve.engine.reply import Reply, RequestOptions
from serve.link.frame_link import FrameLink
from serve.link.payload_ring import PayloadRing
from serve.link.wire import pack_refusal, pack_reply, pack_state
from serve.models.limits import RefusedError

logger = logging.getLogger(__name__)

HEARD_S = 1.0
_TELL_PART = 8  # of the ring: read on that far, the door is told
_A_DOOR = Caller()  # who asks it, it has let in; what is hidden from some has one door only


class DoorPeer:
    """One door; made in the engines' event loop.

    `on_change` is awaited when it has changed what all doors know; `on_lost` is called once its
    process is gone, and what it had open is withdrawn.
    """

    def __init__(
        self,
        server: Server,
        ring: PayloadRing,
        *,
        on_change: Callable[[], Awaitable[None]],
        on_lost: Callable[[], object],
    ) -> None:
        self._server = server
        self._engines = [engine for _, engine in server.models.engines()]
        self._ring = ring
        self._on_change = on_change
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._withdraws: dict[int, Withdraw] = {}
        self._filled = self._told_filled = 0
        self._numbers = itertools.count()
        self._unheard: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.lag_s, self.inflight_bytes = 0.0, 0
        self._link = FrameLink(
            {
                "infer": self._infer,
                "cancel": self._cancel,
                "refuse": self._refuse,
                "refused": server.metrics.refused,
                "beat": self._beat,
                "ask": self._ask,
                "ack": self._ack,
                "ready": self._is_ready,
            },
            self._lost,
        )

    async def connect(self, sock: socket.socket) -> None:
        """Take this end of the pair of sockets."""
        await self._loop.create_unix_connection(lambda: self._link, sock=sock)

    @property
    def num_open(self) -> int:
        """How many of its requests are open."""
        return len(self._withdraws)

    def begin(self, config: dict[str, Any], models: list[dict[str, Any]]) -> None:
        """Tell the door what it serves, and how."""
        state = pack_state(self._server)
        self._link.send("begin", {"config": config, "models": models, "state": state})

    async def tell(self, timeout_s: float = HEARD_S) -> None:
        """Tell the door how the server is; return when it has heard, or is gone or silent."""
        if not self._link.is_open or not self.ready.done():
            return  # it is told when it is ready
        number = next(self._numbers)
        heard = self._unheard[number] = self._loop.create_future()
        self._link.send("state", number, pack_state(self._server))
        try:
            async with asyncio.timeout(timeout_s):
                await heard
        except TimeoutError:
            logger.error("a door has not answered for %g s", timeout_s)
        finally:
            self._unheard.pop(number, None)

    def stop(self, timeout_s: float) -> None:
        """Have the door finish what is open, and end."""
        self._link.send("stop", timeout_s)

    # --- what the door says ----------------------------------------------------------------------

    def _infer(
        self,
        number: int,
        index: int,
        dtype: str,
        shape: Sequence[int],
        offset: int,
        filled: int,
        arrival_s: float,
        options: Sequence[Any],
    ) -> None:
        samples = self._ring.take(offset, tuple(shape), dtype)
        self._filled = filled
        if filled - self._told_filled > self._ring.size // _TELL_PART:
            self._told_filled = filled
            self._link.send("freed", filled)
        withdraw: Withdraw | None = None
        is_over = False

        def end(replies: list[Reply]) -> None:
            nonlocal is_over
            is_over = True
            self._withdraws.pop(number, None)
            self._tell_end(number, index, replies)

        try:
            withdraw = self._engines[index].open_request(
                samples, arrival_s=arrival_s, options=RequestOptions._make(options), on_end=end
            )
        except Exception as error:  # what the executor does not take; the door says so
            logger.exception("a request could not be queued")
            self._link.send("failed", number, f"{type(error).__name__}: {error}")
            return
        if not is_over:
            self._withdraws[number] = withdraw

    def _tell_end(self, number: int, index: int, replies: list[Reply]) -> None:
        earliest = None
        if not all(reply.is_executed for reply in replies):
            earliest = self._engines[index].earliest_answer()
        self._link.send("ended", number, [pack_reply(reply) for reply in replies], earliest)

    def _cancel(self, number: int) -> None:
        withdraw = self._withdraws.get(number)
        if withdraw is not None:
            withdraw()

    def _refuse(
        self, index: int, reason: str, arrival_s: float, options: Sequence[Any], samples: int
    ) -> None:
        own = RequestOptions._make(options)
        self._engines[index].refuse(reason, arrival_s=arrival_s, options=own, samples=samples)

    def _beat(self, lag_s: float, inflight_bytes: int) -> None:
        self.lag_s, self.inflight_bytes = lag_s, inflight_bytes

    def _ack(self, number: int) -> None:
        heard = self._unheard.get(number)
        if heard is not None and not heard.done():
            heard.set_result(None)

    def _is_ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)
            self._begin(self.tell())  # what has changed since it began

    def _ask(self, number: int, name: str, values: Sequence[Any]) -> None:
        self._begin(self._answer(number, name, values))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, name: str, values: Sequence[Any]) -> None:
        try:
            value = await self._done(name, *values)
        except RefusedError as error:
            self._link.send("answer", number, pack_refusal(error), None)
        except Exception:  # a bug of ours: the door's client learns that it failed, the log why
            logger.exception("%s failed for a door", name)
            refused = RefusedError("internal", "an internal error; the server's log has it")
            self._link.send("answer", number, pack_refusal(refused), None)
        else:
            self._link.send("answer", number, None, value)

    async def _done(self, name: str, *values: Any) -> Any:
        server = self._server
        match name:
            case "metrics":
                return await server.render_metrics(_A_DOOR)
            case "statistics":
                return await server.statistics(_A_DOOR, *values)
            case "settings":
                return await server.live_settings()
            case "change":
                changed = await server.change_settings(json.loads(values[0]))
                await self._on_change()
                return changed
            case "register":
                owner, region, asked = values
                await server.register_region(owner, region, json.loads(asked))
            case _:
                assert name == "unregister", "the last thing that doors ask"
                await server.unregister_region(*values)
        return await self._on_change()

    def _lost(self) -> None:
        for withdraw in tuple(self._withdraws.values()):
            withdraw()
        for heard in self._unheard.values():
            if not heard.done():
                heard.set_result(None)
        self._loop.call_soon(self._on_lost)
        self._ring.close()
