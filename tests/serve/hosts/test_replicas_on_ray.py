"""Two replicas on one local Ray cluster: named to clients, used alike, set together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve.client import Client
from serve.config import parse_config
from serve.hosts.ray_host import RayHost
from tests.serve.ray_cluster import ON_RAY, on_ray

pytestmark = [*ON_RAY, pytest.mark.slow]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, profile) -> Iterator[RayHost]:
    path: Path = tmp_path_factory.mktemp("ray") / "profile.json"
    profile.save(path)
    config = parse_config(
        {
            "device": "timed",
            "profile": str(path),
            "input_shape": (1, 2, 2),
            "model_name": "tiny",
            "port": 0,
            "grpc_port": 0,
            "slo_ms": 2000,
            "replicas": 2,
        }
    )
    with on_ray(config) as host:
        yield host


def named(host: RayHost, kind: str = "http") -> list[str]:
    """Wait until the shared port names both replicas."""
    for _ in range(200):
        urls = httpx.get(f"{host.url}/v2").json().get("replicas", {}).get(kind, [])
        if len(urls) == 2:
            return urls
        time.sleep(0.1)
    pytest.fail(f"two replicas are not named: {urls}")


def ended(urls: list[str]) -> list[int]:
    settings = [httpx.get(f"{url}/admin/config").json()["tiny"] for url in urls]
    return [sum(s["ended"].values()) for s in settings]


def test_clients_use_both_replicas_over_either_protocol(host: RayHost):
    urls = named(host)
    assert len(named(host, "grpc")) == 2
    for url in (host.url, f"grpc://{host.rpc_address}"):
        before = ended(urls)
        with Client(url, "tiny", slo_ms=5000) as client:
            for _ in range(60):
                client.infer(np.zeros((1, 1, 2, 2), np.uint8))
        served = [after - n for n, after in zip(before, ended(urls), strict=True)]
        assert sum(served) == 60
        assert min(served) >= 10


def test_live_settings_reach_both_or_are_refused(host: RayHost):
    refused = httpx.post(f"{host.url}/admin/config", json={"slo_ms": 7})
    assert refused.status_code == 409
    assert "user_config" in refused.json()["error"]
    host.reconfigure({"policy": "fixed:smallest"})
    for url in named(host):
        assert httpx.get(f"{url}/admin/config").json()["tiny"]["policy"] == "fixed:small"
