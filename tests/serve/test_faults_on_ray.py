"""A replica killed with -9 under open-loop load: every query ends once, and service comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serve.config import parse_config
from serve.oip_client import OipClient
from serve.ray_host import RayHost
from serve.retry import Retrying
from traces.target import ReplayReply, ReplayRequest

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL.*:FutureWarning"),
]

RATE_QPS = 50
SLO_S = 0.5
KILL_AT_S = 3.0
DURATION_S = 25.0


def own_process(title: str) -> int:
    """Return the one descendant of this process whose command line begins with `title`."""
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

    (pid,) = filter(is_ours, found)
    return pid


async def load(url: str, kill: int) -> tuple[list[tuple[float, ReplayReply]], int]:
    """Send at a fixed rate, kill a process meanwhile; return (intended send, reply) of each."""
    client = Retrying(OipClient(url, "tiny"))
    payload = np.zeros((1, 2, 2), dtype=np.uint8)
    start_s = time.monotonic()
    sent: list[tuple[float, asyncio.Future[ReplayReply]]] = []
    is_killed = False
    for query_id in range(round(RATE_QPS * DURATION_S)):
        at_s = query_id / RATE_QPS
        await asyncio.sleep(max(0.0, start_s + at_s - time.monotonic()))
        if not is_killed and at_s >= KILL_AT_S:
            os.kill(kill, signal.SIGKILL)
            is_killed = True
        request = ReplayRequest(query_id=query_id, payload=payload, slo_s=SLO_S, timeout_s=5.0)
        sent.append((at_s, asyncio.ensure_future(client.infer(request))))
    replies = [(at_s, await asyncio.wait_for(future, 30)) for at_s, future in sent]
    await client.close()
    return replies, client.num_retries


def test_killed_replica_is_replaced_and_no_query_is_lost_silently(tmp_path: Path, profile):
    path = tmp_path / "profile.json"
    profile.save(path)
    config = parse_config(
        {
            "device": "timed",
            "profile": str(path),
            "input_shape": (1, 2, 2),
            "model_name": "tiny",
            "port": 0,
            "slo_ms": 500,
        }
    )
    host = RayHost(config)
    try:
        url = host.start()
        replies, num_retries = asyncio.run(load(url, own_process("ray::ServeReplica:supernet")))
    finally:
        host.stop()
    outcomes = Counter((reply.status, reply.reason.partition(":")[0]) for _, reply in replies)
    lost = [at_s for at_s, reply in replies if reply.status != "ok"]
    print(
        f"replica killed at {KILL_AT_S:.1f} s: {dict(outcomes)}, {num_retries} retries, "
        f"service back after {max(lost, default=KILL_AT_S) - KILL_AT_S:.1f} s"
    )
    assert sum(outcomes.values()) == round(RATE_QPS * DURATION_S)
    assert outcomes.keys() <= {("ok", ""), ("failed", "connection"), ("rejected", "not_ready")}
    assert all(at_s >= KILL_AT_S - SLO_S for at_s in lost), "nothing is lost before the kill"
    assert all(reply.status == "ok" for at_s, reply in replies if at_s > DURATION_S - 2)
