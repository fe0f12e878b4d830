"""Ray Serve with our policy: a second replica comes under load, and goes when the load is gone."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

from serve.client.rest_target import RestTarget
from serve.config import parse_config
from serve.hosts.ray_host import APP_NAME
from slackfit.profile import LatencyProfile
from tests.serve.ray_cluster import ON_RAY, on_ray
from traces.open_loop.target import ReplayRequest

pytestmark = [*ON_RAY, pytest.mark.slow]

LOAD_QPS = 60  # the largest subnet takes 1/30 s alone: accuracy is given up, nothing is missed
SCALE = 0.025 / 0.004
GIVE_UP_S = 60.0


def running_replicas() -> int:
    from ray import serve as ray_serve

    deployment = ray_serve.status().applications[APP_NAME].deployments["supernet"]
    return deployment.replica_states.get("RUNNING", 0)


async def load_until(url: str, wanted: int) -> float:
    """Send at a fixed rate until so many replicas run; return after how long."""
    client = RestTarget(url, "tiny")
    payload = np.zeros((1, 2, 2), dtype=np.uint8)
    start_s = time.monotonic()
    sent: list[asyncio.Future] = []
    while time.monotonic() - start_s < GIVE_UP_S:
        await asyncio.sleep(max(0.0, start_s + len(sent) / LOAD_QPS - time.monotonic()))
        request = ReplayRequest(query_id=len(sent), payload=payload, slo_s=0.3, timeout_s=5.0)
        sent.append(asyncio.ensure_future(client.infer(request)))
        if len(sent) % LOAD_QPS == 0 and await asyncio.to_thread(running_replicas) >= wanted:
            break
    replies = await asyncio.gather(*sent)
    await client.close()
    served = [reply.accuracy for reply in replies if reply.status == "ok"]
    print(f"{len(replies)} sent, {len(served)} served, mean accuracy {np.mean(served):.3f}")
    return time.monotonic() - start_s


def test_replicas_follow_accuracy_given_up(tmp_path: Path, profile: LatencyProfile):
    path = tmp_path / "profile.json"
    profile.scaled(SCALE).save(path)
    single = json.loads(path.read_text())  # batches of one: a device's limit is its latency
    single["batch_sizes"] = [1]
    for subnet in single["subnets"]:
        subnet["latency_ms"] = {"p50": subnet["latency_ms"]["p50"][:1]}
    path.write_text(json.dumps(single))
    config = parse_config(
        {
            "device": "timed",
            "profile": str(path),
            "input_shape": (1, 2, 2),
            "model_name": "tiny",
            "port": 0,
            "policy": "drainfit",
            "autoscaling": {
                "max_replicas": 2,
                "upscale_delay_s": 1,
                "downscale_delay_s": 3,
            },
        }
    )
    with on_ray(config) as host:
        url = host.url
        assert running_replicas() == 1
        up_s = asyncio.run(load_until(url, 2))
        assert running_replicas() == 2
        start_s = time.monotonic()
        while running_replicas() > 1:
            assert time.monotonic() - start_s < GIVE_UP_S, "the second replica stayed"
            time.sleep(0.5)
        print(
            f"two replicas after {up_s:.1f} s, one again {time.monotonic() - start_s:.1f} s later"
        )
