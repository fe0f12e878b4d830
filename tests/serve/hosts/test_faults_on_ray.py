"""Processes of a cluster killed, and a deployment replaced, under open-loop load from our client.

Two replicas of a device that sleeps. Every query ends once with an outcome that says the truth;
what was lost, and when service was whole again, is printed. Slow: a cluster takes long to start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from serve.client import AsyncClient
from serve.client.errors import InferError
from serve.config import parse_config
from serve.hosts.ray_host import RayHost
from tests.serve.ray_cluster import ON_RAY, on_ray

pytestmark = [*ON_RAY, pytest.mark.slow]

RATE_QPS = 25
SLO_S = 2.0
FAULT_AT_S = 2.0
SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)
SCALE = 15.0  # of the profile: a batch takes 15 to 150 ms, so that something runs when it dies


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, profile) -> Iterator[RayHost]:
    path = tmp_path_factory.mktemp("ray") / "profile.json"
    profile.scaled(SCALE).save(path)
    config = parse_config(
        {
            "device": "timed",
            "profile": str(path),
            "input_shape": (1, 2, 2),
            "model_name": "tiny",
            "port": 0,
            "slo_ms": 500,
            "replicas": 2,
        }
    )
    with on_ray(config) as host:
        yield host


class End(NamedTuple):
    """When a query was to be sent, how it ended (`ok`, or a reason), and how often it was asked."""

    at_s: float
    outcome: str
    num_retries: int


async def ask(client: AsyncClient, at_s: float) -> End:
    try:
        return End(at_s, "ok", (await client.infer(SAMPLE)).num_retries)
    except InferError as error:
        return End(at_s, error.reason, error.num_retries)


async def load(
    url: str, duration_s: float, fault: Callable[[], Any], *, spread: bool = True
) -> list[End]:
    """Send at a fixed rate; let the fault happen meanwhile, on a thread of its own."""
    start_s = time.monotonic()
    asks: list[asyncio.Future[End]] = []
    faulty = None
    slo_ms = SLO_S * 1e3
    async with AsyncClient(url, "tiny", slo_ms=slo_ms, timeout_s=20, spread=spread) as client:
        for number in range(round(RATE_QPS * duration_s)):
            at_s = number / RATE_QPS
            await asyncio.sleep(max(0.0, start_s + at_s - time.monotonic()))
            if faulty is None and at_s >= FAULT_AT_S:
                faulty = asyncio.ensure_future(asyncio.to_thread(fault))
            asks.append(asyncio.ensure_future(ask(client, at_s)))
        ends = await asyncio.gather(*asks)
    assert faulty is not None
    await faulty
    return ends


def report(fault: str, ends: list[End]) -> tuple[Counter[str], float]:
    """Print how the queries ended; return that, and how long after the fault the last was lost."""
    outcomes = Counter(end.outcome for end in ends)
    lost = [end.at_s for end in ends if end.outcome != "ok"]
    back_s = max(0.0, max(lost, default=FAULT_AT_S) - FAULT_AT_S)
    asked_again = sum(end.num_retries > 0 for end in ends)
    saved = sum(end.num_retries > 0 and end.outcome == "ok" for end in ends)
    print(
        f"{fault}: {dict(outcomes)}, {asked_again} asked again, {saved} of them answered; "
        f"the last query was lost {back_s:.1f} s after the fault"
    )
    assert all(at_s >= FAULT_AT_S - SLO_S for at_s in lost), "nothing is lost before"
    return outcomes, back_s


def own_processes(title: str) -> list[int]:
    """Return the descendants of this process whose command line begins with `title`."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if (folder / "cmdline").read_bytes().startswith(title.encode()):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sorted(filter(is_ours, found))


def kill(title: str) -> Callable[[], None]:
    """Return a fault that kills the first of the processes called so."""
    return lambda: os.kill(own_processes(title)[0], signal.SIGKILL)


def wait_for(title: str, count: int) -> None:
    """Wait until there are so many processes called so."""
    give_up_s = time.monotonic() + 60
    while len(own_processes(title)) != count:
        assert time.monotonic() < give_up_s, f"there are not {count} of {title} after a minute"
        time.sleep(0.2)


REPLICA = "ray::ServeReplica:supernet"


def test_killed_controller_costs_nothing(host: RayHost):
    from ray import serve as ray_serve

    wait_for(REPLICA, 2)
    replicas = own_processes(REPLICA)
    ends = asyncio.run(load(host.url, 15.0, kill("ray::ServeController")))
    outcomes, _ = report("controller killed -9", ends)
    assert outcomes == Counter(ok=15 * RATE_QPS)
    assert ray_serve.status().applications, "it is back"
    assert own_processes(REPLICA) == replicas, "and has found them well"


def test_what_runs_on_a_killed_replica_is_answered_by_the_other(host: RayHost):
    wait_for(REPLICA, 2)
    ends = asyncio.run(load(host.url, 8.0, kill(REPLICA)))
    outcomes, _ = report("one of two replicas killed -9", ends)
    assert any(end.num_retries for end in ends), "something ran there when it died"
    assert outcomes.total() == 8 * RATE_QPS
    assert set(outcomes) <= {"ok", "infeasible", "expired"}, "no connection is lost for good"
    assert outcomes["ok"] >= 0.95 * outcomes.total(), "one replica alone is slower, not down"
    wait_for(REPLICA, 2)


def test_killed_proxy_costs_nothing_at_the_replicas_own_door(host: RayHost):
    async def all_ways() -> tuple[list[End], list[End], list[End]]:
        kill_once = kill("ray::ProxyActor")
        return await asyncio.gather(
            load(host.url, 40.0, lambda: None),
            load(host.proxy_url, 40.0, lambda: None),
            load(host.proxy_url, 40.0, kill_once, spread=False),
        )

    at_door, spread, at_proxy = asyncio.run(all_ways())
    everything = Counter(ok=40 * RATE_QPS)
    assert report("proxy killed -9, seen at the replicas' door", at_door)[0] == everything
    outcomes, _ = report("... by a client that went on to the replicas", spread)
    assert outcomes == everything
    outcomes, back_s = report("... through the proxy alone", at_proxy)
    assert set(outcomes) <= {"ok", "connection", "http_404", "http_500", "http_503"}
    assert outcomes.total() == 40 * RATE_QPS
    assert 0 < back_s < 37, "it comes back by itself"


def test_redeploy_under_load_breaks_no_connection(host: RayHost):
    from ray import serve as ray_serve

    from serve.app import build

    def redeploy() -> None:
        change = {"policy": "fixed:smallest", "door_port": int(host.url.rpartition(":")[2])}
        application = build(host._config.model_copy(update=change))
        ray_serve.run(application, name="supernet", route_prefix="/")

    ends = asyncio.run(load(host.url, 30.0, redeploy))
    outcomes, _ = report("both replicas replaced", ends)
    assert outcomes.total() == 30 * RATE_QPS
    assert set(outcomes) <= {"ok", "draining", "not_ready", "expired", "infeasible"}
    assert outcomes["ok"] > 0.98 * outcomes.total()


def test_killed_only_replica_is_replaced_and_no_query_is_lost_silently(host: RayHost):
    from ray import serve as ray_serve

    from serve.app import build

    change = {"replicas": 1, "door_port": int(host.url.rpartition(":")[2])}
    ray_serve.run(build(host._config.model_copy(update=change)), name="supernet", route_prefix="/")
    wait_for(REPLICA, 1)
    ends = asyncio.run(load(host.url, 30.0, kill(REPLICA)))
    outcomes, _ = report("the only replica killed -9", ends)
    assert outcomes.total() == 30 * RATE_QPS
    assert set(outcomes) <= {"ok", "connection", "not_ready", "expired", "infeasible"}
    assert all(end.outcome == "ok" for end in ends if end.at_s > 28)
