"""A door's link to its engine: order, a full ring, and an engine's process that is gone."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import numpy as np
import pytest

from serve.engine.reply import Reply, RequestOptions
from serve.link.door_link import DoorLink
from serve.link.frame_link import FrameLink
from serve.link.linked_engine import LinkedEngine
from serve.link.payload_ring import PayloadRing, make_memory
from serve.link.wire import pack_reply
from serve.models.limits import RefusedError
from slackfit.query import Outcome

OPTIONS = RequestOptions(20.0, tenant="shop")


class Engines:
    """The other end of a link, by hand: `heard` is what came, `taken` the samples that came."""

    def __init__(self, memory: int) -> None:
        self.ring = PayloadRing(memory)
        self.heard: list[tuple[Any, ...]] = []
        self.taken: list[np.ndarray] = []
        self.filled = 0
        kinds = ("cancel", "refuse", "ask", "ack", "refused")
        handlers = {kind: lambda *values, k=kind: self.heard.append((k, *values)) for kind in kinds}
        self.link = FrameLink({**handlers, "infer": self._infer}, lambda: None)

    def _infer(self, number, engine, dtype, shape, offset, filled, arrival_s, options) -> None:
        self.heard.append(("infer", number))
        self.taken.append(self.ring.take(offset, tuple(shape), dtype))
        self.filled = filled


@pytest.fixture
def linked(profile):
    """`linked(use)` runs `use(door's link, engines)` in an event loop."""

    def run(use: Any) -> None:
        async def main() -> None:
            memory = make_memory(4096)
            ours, theirs = socket.socketpair()
            engines = Engines(memory)
            link = DoorLink(PayloadRing(memory), lambda state: None)
            link.engines.append(LinkedEngine(0, link, profile, "slackfit"))
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: engines.link, sock=theirs)
            await link.connect(ours)
            os.close(memory)
            try:
                await use(link, engines)
            finally:
                engines.link.close()
                await asyncio.sleep(0.02)

        asyncio.run(main())

    return run


def test_a_full_ring_keeps_requests_in_order_and_their_withdrawal_behind_them(linked):
    async def use(link: DoorLink, engines: Engines) -> None:
        for value in range(12):  # of 1,024 bytes, where 4,096 have room
            samples = np.full((1, 1024), value, dtype=np.uint8)
            withdraw = link.open_request(0, samples, 10.0, OPTIONS, lambda replies: None)
        withdraw()
        for _ in range(12):
            await asyncio.sleep(0.01)
            engines.link.send("freed", engines.filled)
        await asyncio.sleep(0.02)
        assert [int(samples[0, 0]) for samples in engines.taken] == list(range(12))
        assert [kind for kind, *_ in engines.heard] == ["infer"] * 12 + ["cancel"]
        assert engines.heard[-1][1] == engines.heard[-2][1], "the last request is withdrawn"

    linked(use)


def test_replies_come_as_they_were_with_the_tenant_that_asked(linked):
    outcome = Outcome(5, "on_time", "", 1.0, 2.0, 1.25, 1.5, "small", 0.75, 4, 0, 2)
    sent = Reply(outcome, np.arange(20, dtype=np.float32).reshape(2, 10), 0.25, 9, "graph", "shop")

    async def use(link: DoorLink, engines: Engines) -> None:
        got: list[Reply] = []
        link.open_request(0, np.zeros((2, 4), np.uint8), 10.0, OPTIONS, got.extend)
        await asyncio.sleep(0.02)
        engines.link.send("ended", engines.heard[0][1], [pack_reply(sent)], None)
        await asyncio.sleep(0.02)
        (reply,) = got
        assert reply._replace(output=None) == sent._replace(output=None)
        np.testing.assert_array_equal(reply.output, sent.output)

    linked(use)


def test_when_the_engines_process_is_gone_all_that_is_open_has_failed(linked):
    async def use(link: DoorLink, engines: Engines) -> None:
        got: list[Reply] = []
        samples = np.zeros((1, 4), np.uint8)
        link.open_request(0, samples, 10.0, OPTIONS, got.extend)
        question = asyncio.ensure_future(link.ask("metrics"))
        await asyncio.sleep(0.02)
        engines.link.close()
        with pytest.raises(RefusedError) as caught:
            await question
        link.open_request(0, samples, 10.0, OPTIONS, got.extend)  # and what comes then
        await asyncio.sleep(0.02)
        assert [reply.outcome.reason for reply in got] == ["device_failed"] * 2
        assert [reply.tenant for reply in got] == ["shop"] * 2
        assert caught.value.reason == "device_failed"
        assert link.engines[0].status().fault
        assert link.stopped.done()

    linked(use)


def test_a_text_that_is_no_unicode_takes_nothing_else_with_it(linked):
    """A client may name a subnet so; all that was sent in that turn of the loop had been lost."""

    async def use(link: DoorLink, engines: Engines) -> None:
        for subnet_id in ("small", "\ud800", None):
            options = OPTIONS._replace(subnet_id=subnet_id)
            link.open_request(0, np.zeros((1, 4), np.uint8), 10.0, options, lambda replies: None)
        asked = asyncio.ensure_future(link.ask("settings"))
        await asyncio.sleep(0.02)
        assert [kind for kind, *_ in engines.heard] == ["infer"] * 3 + ["ask"]
        engines.link.send("answer", engines.heard[-1][1], None, {"policy": "\ud800"})
        assert await asyncio.wait_for(asked, 5) == {"policy": "\ud800"}

    linked(use)
