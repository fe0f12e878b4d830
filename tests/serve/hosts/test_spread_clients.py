"""Clients of ours before several live replicas: all are used, a sick one by nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from serve.client import AsyncClient, Client
from serve.client.dial import dial
from serve.client.errors import InferError
from serve.config import ServeConfigError, parse_config
from serve.doors.rest import RestDoor
from serve.hosts.listeners import Listeners
from serve.hosts.ray_registry import Registry, announced
from serve.models.replica_set import ReplicaSet
from tests.serve.conftest import free_port
from traces.open_loop.target import ReplayRequest

SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)


class Replica:
    """A replica of the tests: its door and where it alone is reached."""

    def __init__(self, door: RestDoor, urls: list[str]) -> None:
        self.door, self.urls = door, urls

    @property
    def served(self) -> int:
        (model,) = self.door.server.models
        return model.engine.status().ended.get("on_time", 0)

    async def fall_ill(self) -> None:
        (model,) = self.door.server.models
        model.engine._ledger.deliver(model.engine._give_up("the device hangs"))


@pytest.fixture
def replicas(timed_config, timed_door) -> Callable[..., Any]:
    """`replicas(count)` is a context with so many on two shared ports, and the shared URLs."""

    @contextlib.asynccontextmanager
    async def start(count: int, **settings: Any) -> AsyncIterator[tuple[list[Replica], str, str]]:
        http, rpc = free_port(), free_port()
        ports = {"door_port": http, "grpc_port": rpc, **settings}
        async with contextlib.AsyncExitStack() as stack:
            found: list[Replica] = []
            for _ in range(count):
                door = timed_door(hung_after_s=0.2, drain_timeout_s=1.0)
                config = timed_config.model_copy(update=ports)
                listeners = Listeners(config, door.server, is_replica=True)
                await stack.enter_async_context(door.running())
                await stack.enter_async_context(listeners.opened(door))
                found.append(Replica(door, listeners.own_urls))
            for replica in found:
                replica.door.server.replicas.use(url for other in found for url in other.urls)
            yield found, f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{rpc}"

    return start


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_one_client_uses_every_replica_that_the_shared_port_names(replicas, scheme: str):
    """A client of gRPC is one connection: it had been one of N devices."""

    async def main() -> list[int]:
        async with replicas(3) as (found, http, rpc):
            async with AsyncClient(
                http if scheme == "http" else rpc, "tiny", slo_ms=5000
            ) as client:
                for _ in range(60):
                    await client.infer(SAMPLE)
            return [replica.served for replica in found]

    served = asyncio.run(main())
    assert sum(served) == 60
    assert min(served) >= 15


def test_a_client_that_waits_does_so_too(replicas):
    async def main() -> list[int]:
        async with replicas(2) as (found, http, _):

            def use() -> None:
                with Client(http, "tiny", slo_ms=5000) as client:
                    for _ in range(60):
                        client.infer(SAMPLE)

            await asyncio.to_thread(use)
            return [replica.served for replica in found]

    served = asyncio.run(main())
    assert min(served) >= 15


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("leave", ["ill", "drain"])
def test_a_sick_or_draining_replica_loses_nobody_a_query(replicas, scheme: str, leave: str):
    async def ask(client: AsyncClient) -> str:
        try:
            return f"ok after {(await client.infer(SAMPLE)).num_retries}"
        except InferError as error:
            return error.reason

    async def main() -> tuple[Counter[str], int, int, float]:
        async with replicas(2) as (found, http, rpc):
            url = http if scheme == "http" else rpc
            async with AsyncClient(url, "tiny", slo_ms=2000) as client:
                for _ in range(10):
                    await ask(client)
                before = found[0].served
                if leave == "ill":
                    await found[0].fall_ill()
                else:
                    draining = asyncio.ensure_future(found[0].door.server.drain())
                began_s = time.monotonic()
                ends = Counter([await ask(client) for _ in range(40)])
                took_s = time.monotonic() - began_s
                if leave == "drain":
                    await draining
            return ends, before, found[0].served, took_s

    ends, before, after, took_s = asyncio.run(main())
    assert sum(count for end, count in ends.items() if end.startswith("ok")) == 40, ends
    assert after == before > 0
    # Left at once; tried again after 0.1, 0.3, 0.7 s and so on.
    trials = math.log2(1 + took_s / 0.1)
    assert 40 - ends["ok after 0"] <= 2 + trials, ends


def test_a_replay_uses_every_replica(replicas):
    request = ReplayRequest(query_id=0, payload=SAMPLE[0], slo_s=5.0)

    async def main() -> list[list[int]]:
        counts = []
        async with replicas(2) as (found, http, rpc):
            for url in (http, rpc, ",".join(r.urls[1] for r in found)):
                before = [replica.served for replica in found]
                target, model = await dial(url, "tiny")
                assert model.name == "tiny"
                for _ in range(20):
                    assert (await target.infer(request)).status == "ok"
                await target.close()
                counts.append([r.served - n for r, n in zip(found, before, strict=True)])
            target, _ = await dial(http, "tiny", spread=False)
            assert type(target).__name__ == "RestTarget"
            await target.close()
        return counts

    for served in asyncio.run(main()):
        assert sum(served) == 20
        assert min(served) >= 8


def test_idle_connections_of_a_sick_replica_are_closed(replicas):
    """They would be found to be closed by the next query only after an answer of 503."""

    async def main() -> bytes:
        async with replicas(1) as (found, _, _):
            host, port = found[0].urls[1].removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n")
            head = await reader.readuntil(b"}")
            assert b" 200 " in head
            await found[0].fall_ill()
            async with asyncio.timeout(2):
                rest = await reader.read()
            writer.close()
            return rest

    assert asyncio.run(main()) == b""


@pytest.mark.parametrize("limit", [{"max_connection_requests": 3}, {"max_connection_age_s": 0.2}])
def test_a_connection_ends_after_so_many_requests_or_seconds(replicas, limit):
    async def main() -> list[str]:
        said: list[str] = []
        async with replicas(1, **limit) as (found, _, _), httpx.AsyncClient() as client:
            for _ in range(6):
                answer = await client.get(f"{found[0].urls[1]}/v2/health/live")
                said.append(answer.headers.get("connection", ""))
                await asyncio.sleep(0.1)
        return said

    said = asyncio.run(main())
    if "max_connection_requests" in limit:
        assert said == ["", "", "close", "", "", "close"]
    else:
        assert "close" in said
        assert said[0] == ""


def test_a_grpc_connection_is_told_to_go_when_it_is_old(replicas):
    """Calls go on: the client connects anew."""

    async def main() -> tuple[int, set[str]]:
        async with replicas(1, max_connection_age_s=0.3) as (found, _, _):
            url = found[0].urls[0]
            peers: set[str] = set()
            service = type(found[0].door.server.guard).identify

            def noted(self, scope, **given):
                peers.add(given["peer"])
                return service(self, scope, **given)

            import grpc.aio

            from serve.client.rpc_channel import call_of
            from serve.proto import open_inference_pb2 as pb

            channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"))
            states = Counter[str]()
            call = call_of(channel, "ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse)
            answered = 0
            for _ in range(15):
                answered += (await call(pb.ServerLiveRequest(), wait_for_ready=True)).live
                await asyncio.sleep(0.1)
                states[str(channel.get_state())] += 1
            await channel.close()
            return answered, set(states)

    answered, states = asyncio.run(main())
    assert answered == 15
    assert any("IDLE" in state for state in states), states


# --- the list ------------------------------------------------------------------------------------


class Texts:
    """A store of the tests; it may fail."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.fails = False

    def put(self, name: str, text: str) -> None:
        if self.fails:
            raise ConnectionError("the store is away")
        self.texts[name] = text

    def all(self) -> dict[str, str]:
        return dict(self.texts)

    def remove(self, name: str) -> None:
        self.texts.pop(name, None)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_replicas_hear_of_each_other_and_forget_who_is_silent():
    store, clock = Texts(), Clock()
    first, second = (Registry(store, [f"http://{n}:1"], clock=clock) for n in "ab")
    assert first.renew() == ["http://a:1"]
    second.renew()
    assert sorted(first.renew()) == ["http://a:1", "http://b:1"]
    for _ in range(8):
        clock.now_s += 1.0
        heard = first.renew()
    assert heard == ["http://a:1"], "b is silent for longer than five seconds"
    assert sorted(second.renew()) == ["http://a:1", "http://b:1"]
    assert sorted(first.renew()) == ["http://a:1", "http://b:1"]
    second.leave()
    assert first.renew() == ["http://a:1"]


def test_entries_of_the_dead_are_swept():
    store, clock = Texts(), Clock()
    store.texts["dead"] = json.dumps([7, "http://dead:1"])
    registry = Registry(store, ["http://a:1"], clock=clock)
    assert sorted(registry.renew()) == ["http://a:1", "http://dead:1"]
    for _ in range(63):
        clock.now_s += 1.0
        registry.renew()
    assert len(store.texts) == 1


def test_a_replica_is_named_while_it_takes_queries_and_a_store_that_fails_changes_nothing(
    monkeypatch, caplog
):
    monkeypatch.setattr("serve.hosts.ray_registry._PERIOD_S", 0.02)
    store, named = Texts(), ReplicaSet()
    takes = [True]

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)

    async def main() -> None:
        registry = Registry(store, ["http://a:1"])
        async with announced(registry, named, lambda: takes[0]):
            await until(lambda: named.urls == ("http://a:1",))
            store.fails = True
            await until(lambda: "can't be kept up to date" in caplog.text)
            assert named.urls == ("http://a:1",)
            store.fails, takes[0] = False, False
            await until(lambda: not store.texts)
            takes[0] = True
        assert not store.texts

    asyncio.run(main())


def test_a_tag_is_there_when_there_is_a_choice_and_differs_from_list_to_list():
    alone = ReplicaSet(["http://a:1", "grpc://a:2"])
    assert alone.tag == ""
    one, other = ReplicaSet(["http://a:1", "http://b:1"]), ReplicaSet(["http://a:1", "http://c:1"])
    assert one.tag != other.tag != ""
    assert one.tag == ReplicaSet(["http://b:1", "http://a:1", "http://b:1"]).tag
    assert one.named() == {"http": ["http://a:1", "http://b:1"], "grpc": []}


def test_servers_without_ray_name_the_list_of_their_settings(timed_config):
    given = timed_config.model_dump() | {"replica_urls": "http://a:1,http://b:1"}
    assert parse_config(given).replica_urls == ("http://a:1", "http://b:1")
    with pytest.raises(ServeConfigError, match="'a:1' is no URL with http"):
        parse_config(timed_config.model_dump() | {"replica_urls": ["a:1"]})
