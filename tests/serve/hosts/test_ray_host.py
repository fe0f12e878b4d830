"""The Ray Serve application on one local cluster: ask, refuse, reconfigure, stop."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.hosts.ray_host import RayHost
from tests.serve.ray_cluster import ON_RAY, on_ray

pytestmark = ON_RAY

BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}


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
            "max_body_bytes": 4096,
            "port": 0,
            "slo_ms": 500,
        }
    )
    with on_ray(config) as host:
        yield host


def infer(host: RayHost, model: str = "tiny", **options) -> httpx.Response:
    return httpx.post(f"{host.url}/v2/models/{model}/infer", json=BODY, timeout=10, **options)


def test_replica_answers_on_the_port_that_was_asked_for(host: RayHost):
    answer = infer(host)
    assert answer.status_code == 200
    assert answer.json()["parameters"]["subnet"] == "large"


def test_rays_proxy_gives_the_same_answers(host: RayHost):
    answer = httpx.post(f"{host.proxy_url}/v2/models/tiny/infer", json=BODY, timeout=10)
    assert answer.status_code == 200
    assert answer.json()["parameters"]["subnet"] == "large"
    assert httpx.get(f"{host.proxy_url}/v2/models/nobody").json()["reason"] == "unknown_model"


def test_refusals_reach_the_client_unchanged(host: RayHost):
    assert infer(host, "nobody").status_code == 404
    assert infer(host, headers={"x-slo-ms": "0.1"}).json()["reason"] == "infeasible"
    too_large = httpx.post(f"{host.url}/v2/models/tiny/infer", content=b" " * 5000)
    assert (too_large.status_code, too_large.json()["reason"]) == (413, "too_large")


@pytest.mark.slow
def test_metrics_reach_the_export_of_ray(host: RayHost):
    import ray

    assert infer(host).status_code == 200
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    for _ in range(200):
        with contextlib.suppress(httpx.TransportError):
            exported = {
                line.split("{")[0]: line
                for line in httpx.get(url).text.splitlines()
                if line.startswith("ray_supernet_")
            }
            if "ray_supernet_subnet_queries_total" in exported:
                break
        time.sleep(0.1)
    else:
        pytest.fail("Ray exports no metric of ours")
    assert 'model="tiny"' in exported["ray_supernet_queries_total"]
    assert 'deployment="supernet"' in exported["ray_supernet_queries_total"]
    samples = re.findall(
        r"^(supernet_\w+)\S* (\S+)$", httpx.get(f"{host.url}/metrics").text, re.MULTILINE
    )
    touched = {name for name, value in samples if float(value) and not name.endswith("_created")}
    assert touched
    missing = {f"ray_{name}" for name in touched} - set(exported)
    assert not missing, "only what was never touched may miss"


def test_policy_and_slo_switch_without_a_restart(host: RayHost):
    settings = host.reconfigure({"policy": "fixed:smallest", "slo_ms": 250})["tiny"]
    assert (settings["policy"], settings["slo_ms"]) == ("fixed:small", 250)
    assert infer(host).json()["parameters"]["subnet"] == "small"
    with pytest.raises(ServeConfigError, match="unknown live setting polcy"):
        host.reconfigure({"polcy": "slackfit"})


def test_cluster_that_is_there_already_is_left_alone(host: RayHost):
    second = RayHost(host._config)
    with pytest.raises(ServeConfigError, match="connected to a Ray cluster already"):
        second.start()
    second.stop()
    assert infer(host).status_code == 200


def deploy(host: RayHost, user_config: dict[str, object]) -> None:
    """Deploy as `serve deploy` does: from a configuration, not from code."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    application = {
        "name": "supernet",
        "route_prefix": "/",
        "import_path": "serve.app:build",
        "args": {
            **host._config.model_dump(mode="json", exclude_none=True),
            "door_port": int(host.url.rsplit(":", 1)[1]),
        },
        "deployments": [{"name": "supernet", "user_config": user_config}],
    }
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(
        ServeDeploySchema.model_validate({"applications": [application]}), _blocking=True
    )


def live_settings(host: RayHost, policy: str) -> dict:
    """Wait until the served policy is `policy` and return the settings."""
    from ray import serve as ray_serve

    for _ in range(250):
        with contextlib.suppress(httpx.TransportError):
            settings = httpx.get(f"{host.url}/admin/config").json()["tiny"]
            if settings["policy"] == policy:
                return settings
        time.sleep(0.1)
    pytest.fail(f"policy {policy} did not come: {ray_serve.status().applications}")


@pytest.mark.slow
def test_user_config_reconfigures_a_running_replica(host: RayHost):
    deploy(host, {"policy": "fixed:smallest"})
    live_settings(host, "fixed:small")
    assert infer(host).status_code == 200
    deploy(host, {"policy": "fixed:largest", "slo_ms": 250})
    settings = live_settings(host, "fixed:large")
    assert settings["slo_ms"] == 250
    assert settings["ended"] == {"on_time": 1}, "a restarted replica would count from zero"
    deploy(host, {"policy": "slackfit", "subnets": ["small"], "max_batch_size": 1})
    settings = live_settings(host, "slackfit")
    assert (settings["subnets"], settings["max_batch_size"]) == (["small"], 1)
    assert infer(host).json()["parameters"]["subnet"] == "small"
    assert settings["ended"] == {"on_time": 1}


def test_stopping_frees_the_port_and_the_environment(host: RayHost):
    port = int(host.url.rsplit(":", 1)[1])
    host.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_ray_validates_the_arguments_of_the_builder():
    from serve.app import build

    (argument,) = inspect.signature(build).parameters.values()
    assert argument.annotation is ServeConfig, "a string here would switch validation off"
