"""Which replica a client asks: those given, those that the server names, none that is sick."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from serve.client import AsyncClient, Client
from serve.client.dial import dial
from serve.client.errors import InferError, connection_lost, refusal_error
from serve.client.infer_call import InferCall, InferResult, TimeLimits
from serve.client.replicas import Replicas, split_urls
from serve.client.rest_answers import ClientError, Refusal
from serve.client.spread_target import SpreadTarget
from serve.client.spread_transport import AsyncSpreadTransport, SpreadTransport
from traces.open_loop.target import ReplayReply, ReplayRequest

A, B, C, DOOR = (f"http://{name}:8000" for name in ("a", "b", "c", "door"))
CALL = InferCall("tiny", np.zeros((1, 1, 2, 2), np.uint8), {})
TIMES = TimeLimits(1.0, None)
REPLICAS = {"replicas": {"http": [A, B], "grpc": ["grpc://a:1", "grpc://b:1"]}}


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def result(
    tag: str = "", finish_s: float | None = 0.0, capacity_qps: float = 1000.0
) -> InferResult:
    return InferResult(
        logits=np.zeros((1, 2), np.float32),
        subnet_id="s",
        accuracy=0.9,
        policy="p",
        is_late=False,
        batch_size=1,
        queue_s=0.0,
        execution_s=0.001,
        slack_s=0.1,
        earliest_finish_s=finish_s,
        capacity_qps=capacity_qps,
        replica_tag=tag,
    )


class Fake:
    """A transport that answers as its address is told to, and counts."""

    def __init__(self, ends: Mapping[str, Any], asked: Counter[str], url: str) -> None:
        self.url, self._ends, self._asked = url, ends, asked
        self.is_closed = False

    def infer(self, infer_call: InferCall, times: TimeLimits) -> InferResult | InferError:
        self._asked[self.url] += 1
        return self._ends[self.url]

    def get(self, kind: str, model: str | None, timeout_s: float) -> dict[str, Any]:
        self._asked[f"{self.url} {kind}"] += 1
        if isinstance(self._ends[self.url], InferError):
            raise self._ends[self.url]
        return REPLICAS if kind == "server" else {}

    def close(self) -> None:
        self.is_closed = True


class AsyncFake(Fake):
    async def infer(self, infer_call, times):  # type: ignore[override]
        await asyncio.sleep(0)
        return super().infer(infer_call, times)

    async def get(self, kind, model, timeout_s):  # type: ignore[override]
        return super().get(kind, model, timeout_s)

    async def close(self):  # type: ignore[override]
        super().close()


@pytest.fixture(params=["waits", "awaited"])
def ask(request) -> Callable[..., list[InferResult | InferError]]:
    """`ask(replicas, ends, asked, count)` is what a transport of either kind returns."""

    def waiting(replicas, ends, asked, count):
        transport = SpreadTransport(replicas, lambda url: Fake(ends, asked, url))
        got = [transport.infer(CALL, TIMES) for _ in range(count // 2)]
        settled(lambda: asked[f"{DOOR} server"] == 0 or set(replicas.urls) > {DOOR})
        got += [transport.infer(CALL, TIMES) for _ in range(count - count // 2)]
        transport.close()
        return got

    def awaited(replicas, ends, asked, count):
        async def main():
            transport = AsyncSpreadTransport(replicas, lambda url: AsyncFake(ends, asked, url))
            got = [await transport.infer(CALL, TIMES) for _ in range(count)]
            await transport.close()
            return got

        return asyncio.run(main())

    return waiting if request.param == "waits" else awaited


def settled(condition: Callable[[], bool]) -> None:
    import time

    for _ in range(200):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it did not come about")


def test_several_addresses_are_used_alike(ask):
    asked: Counter[str] = Counter()
    ask(Replicas([A, B, C], clock=Clock()), dict.fromkeys([A, B, C], result()), asked, 30)
    assert asked == {A: 10, B: 10, C: 10}


def test_the_replicas_that_a_server_names_are_used_and_the_address_given_is_spare(ask):
    """The first answers come from the door; once the list is read, from the replicas."""
    asked: Counter[str] = Counter()
    replicas = Replicas([DOOR], clock=Clock())
    ask(replicas, dict.fromkeys([A, B, DOOR], result("t1")), asked, 40)
    assert asked[f"{DOOR} server"] == 1
    assert set(replicas.urls) == {A, B, DOOR}
    assert asked[A] >= 9
    assert asked[B] >= 9
    assert asked[DOOR] <= 20


def test_a_client_that_shall_not_follow_stays(ask):
    asked: Counter[str] = Counter()
    ask(Replicas([DOOR], follows=False), dict.fromkeys([A, B, DOOR], result("t1")), asked, 6)
    assert asked == {DOOR: 6}


def test_the_list_is_read_again_when_its_tag_changes_once_a_second_at_most():
    clock = Clock()
    replicas = Replicas([DOOR], clock=clock)
    assert not replicas.should_look("")
    assert replicas.should_look("t1")
    assert not replicas.should_look("t1"), "somebody is at it"
    replicas.name(REPLICAS, "t1")
    clock.now_s += 2
    assert not replicas.should_look("t1")
    assert replicas.should_look("t2")
    clock.now_s += 0.5
    assert not replicas.should_look("t3")
    clock.now_s += 0.6
    assert replicas.should_look("t3")


def test_only_addresses_of_the_same_protocol_are_followed():
    """Among them none without TLS: a token would travel in the clear."""
    named = {"replicas": {"http": ["http://a:1", "https://b:1"], "grpc": ["grpc://a:2"]}}
    for given, found in (
        ("https://door", "https://b:1"),
        ("http://door", "http://a:1"),
        ("grpc://door", "grpc://a:2"),
    ):
        replicas = Replicas([given])
        replicas.name(named, "t")
        assert replicas.urls == (found, given)
    replicas = Replicas(["grpcs://door"])
    replicas.name(named, "t")
    assert replicas.urls == ("grpcs://door",)


@pytest.mark.parametrize("server", [{}, {"replicas": 3}, {"replicas": {"http": "x"}}])
def test_a_list_that_nobody_can_read_leaves_the_address_given(server):
    replicas = Replicas([DOOR])
    replicas.name(server, "t")
    assert replicas.urls == (DOOR,)
    assert replicas.choose() == DOOR


@pytest.mark.parametrize(
    "end",
    [
        connection_lost("x"),
        refusal_error(Refusal("rejected", "draining", ""), 503),
        refusal_error(Refusal("rejected", "device_failed", ""), "UNAVAILABLE"),
    ],
)
def test_a_sick_replica_is_left_after_one_query(ask, end):
    asked: Counter[str] = Counter()
    ask(Replicas([A, B], clock=Clock()), {A: end, B: result()}, asked, 20)
    assert asked == {A: 1, B: 19}


def test_what_is_refused_for_load_leaves_no_replica_but_tells_its_queue(ask):
    asked: Counter[str] = Counter()
    full = refusal_error(Refusal("rejected", "infeasible", "", 0.0, 0.5), 504)
    replicas = Replicas([A, B], clock=Clock())
    for url in (A, B):  # both are known
        assert replicas.choose() == url
        replicas.answered(url, 0.0, 1000.0)
    ask(replicas, {A: full, B: result()}, asked, 20)
    assert asked[A] == 1, "half a second of queue"
    assert asked[B] == 19


def test_a_retry_waits_only_where_no_other_replica_is_there():
    replicas = Replicas([A, B])
    assert replicas.has_other()
    replicas.failed(replicas.choose())
    assert replicas.has_other()
    replicas.failed(replicas.choose())
    assert not replicas.has_other()
    assert not Replicas([A]).has_other()


def test_questions_go_past_a_replica_that_is_gone():
    asked: Counter[str] = Counter()
    ends = {A: connection_lost("x"), B: result()}
    transport = SpreadTransport(Replicas([A, B]), lambda url: Fake(ends, asked, url))
    assert transport.get("server", None, 1.0) == REPLICAS
    assert asked == {f"{A} server": 1, f"{B} server": 1}
    with pytest.raises(InferError):
        SpreadTransport(
            Replicas([A, C]), lambda url: Fake({A: ends[A], C: ends[A]}, asked, url)
        ).get("server", None, 1.0)


def test_a_question_whose_asker_goes_away_is_not_open_for_ever():
    """Its replica had been taken for a busier one, and once it failed, for one on trial."""
    asked: Counter[str] = Counter()
    ends = dict.fromkeys([A, B], result(finish_s=None))  # tells nothing of itself

    class Silent(AsyncFake):
        async def get(self, kind, model, timeout_s):  # type: ignore[override]
            await asyncio.sleep(60)

    async def main() -> None:
        transport = AsyncSpreadTransport(
            Replicas([A, B], clock=Clock()), lambda url: Silent(ends, asked, url)
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await transport.get("ready", None, 9.0)
        for _ in range(10):
            await transport.infer(CALL, TIMES)
        await transport.close()

    asyncio.run(main())
    assert asked == {A: 5, B: 5}


def test_a_question_that_is_interrupted_is_not_open_for_ever():
    asked: Counter[str] = Counter()

    class Interrupted(Fake):
        def get(self, kind, model, timeout_s):  # type: ignore[override]
            raise KeyboardInterrupt

    ends = dict.fromkeys([A, B], result(finish_s=None))  # tells nothing of itself
    transport = SpreadTransport(
        Replicas([A, B], clock=Clock()), lambda url: Interrupted(ends, asked, url)
    )
    with pytest.raises(KeyboardInterrupt):
        transport.get("ready", None, 9.0)
    for _ in range(10):
        transport.infer(CALL, TIMES)
    assert asked == {A: 5, B: 5}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "not a URL"),
        ("http://a, b", "not a URL"),
        ("http://a,grpc://b", "one protocol"),
        ("", "not a URL"),
    ],
)
def test_addresses_that_no_client_takes_are_refused(url, message):
    with pytest.raises(ClientError, match=message):
        Replicas(split_urls(url))
    with pytest.raises(ClientError, match=message):
        Client(url, "tiny")


class FakeTarget:
    def __init__(self, reply: ReplayReply) -> None:
        self.reply, self.asked, self.slos_s = reply, 0, list[float]()

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        self.asked += 1
        self.slos_s.append(request.slo_s)
        return self.reply

    async def server(self) -> Mapping[str, Any]:
        return REPLICAS

    async def prepare(self, payloads: np.ndarray) -> None:
        self.payloads = payloads

    async def close(self) -> None: ...


def test_a_replays_query_goes_to_another_replica_with_what_is_left():
    sick = FakeTarget(ReplayReply(status="failed", reason="device_failed"))
    sound = FakeTarget(ReplayReply(status="ok", earliest_finish_s=0.0, capacity_qps=100.0))
    request = ReplayRequest(query_id=0, payload=np.zeros((1, 2, 2), np.uint8), slo_s=0.5)

    async def main() -> list[str]:
        async def reach(url: str):
            return sound

        target = SpreadTarget(Replicas([A, B]), {A: sick}, reach)
        await target.prepare(np.zeros((3, 1, 2, 2)))
        return [(await target.infer(request)).status for _ in range(10)]

    assert asyncio.run(main()) == ["ok"] * 10
    assert (sick.asked, sound.asked) == (1, 10)
    assert len(sound.payloads) == 3, "those that come later are prepared, too"
    assert sound.slos_s[0] < 0.5


def test_a_replay_follows_the_list_of_the_server():
    door = FakeTarget(ReplayReply(status="ok", replica_tag="t1"))
    made: dict[str, FakeTarget] = {}
    request = ReplayRequest(query_id=0, payload=np.zeros((1, 2, 2), np.uint8), slo_s=0.5)

    async def main() -> None:
        async def reach(url: str):
            made[url] = FakeTarget(ReplayReply(status="ok", replica_tag="t1"))
            return made[url]

        target = SpreadTarget(Replicas([DOOR]), {DOOR: door}, reach)
        for _ in range(40):
            await target.infer(request)
            await asyncio.sleep(0)
        await target.close()

    asyncio.run(main())
    assert made.keys() == {A, B}
    assert door.asked < 10
    assert abs(made[A].asked - made[B].asked) <= 1


def test_a_connection_that_is_not_made_leaves_time_for_another_replica():
    """A host that swallows what it is sent: a full queue of a listener that accepts nobody."""
    limits = TimeLimits(0.6, None)
    assert (limits.connect_s, limits.limit_s) == (0.3, 30.0)
    assert TimeLimits(0.02, None).connect_s == 0.25
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"

        urls = [url, url.replace("127.0.0.1", "localhost")]

        async def awaited() -> str:
            async with AsyncClient(urls, "tiny", slo_ms=200) as client:
                with pytest.raises(InferError) as caught:
                    await client.infer(CALL.samples)
                return caught.value.reason

        assert asyncio.run(awaited()) == "connection"
        with Client(urls, "tiny", slo_ms=200) as client, pytest.raises(InferError) as caught:
            client.infer(CALL.samples)
        assert caught.value.reason == "connection"
        for filler in fillers:
            filler.close()


def test_a_dialled_list_begins_with_whoever_answers():
    async def main() -> None:
        with pytest.raises(ClientError, match="127.0.0.1:9"):
            await dial("http://127.0.0.1:7,http://127.0.0.1:9", "tiny")

    asyncio.run(main())
