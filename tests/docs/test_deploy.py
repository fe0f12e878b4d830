"""The Dockerfile and the RayService of docs/deploy: linted, and their arguments are ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.access.build_guard import build_guard
from serve.config import ServeConfig, ServeConfigError, parse_config, parse_live_config

DEPLOY = Path("docs/deploy")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
SERVICE = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text(encoding="utf-8"))
SERVED = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
PYPROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "hadolint"
    return subprocess.run(
        [program, "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_hadolint_finds_nothing():
    linted = hadolint(DOCKERFILE)
    assert linted.returncode == 0, linted.stdout


def test_hadolint_would_find_something():
    assert "DL3025" in hadolint("FROM debian:12\nCMD supernet serve\n").stdout


def test_the_image_holds_every_package_and_no_file_that_is_not_there():
    copied = [
        name
        for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert all(Path(name).exists() for name in copied)
    assert set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= set(copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {name[1:] for name in ignored if name.startswith("!")} == set(copied)


def command_of_the_image(monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    """Run the image's command with a host that only keeps its settings."""
    from typer.testing import CliRunner

    from serve.cli import build_app

    (entry,) = re.findall(r"^ENTRYPOINT (.*)", DOCKERFILE, re.MULTILINE)
    assert json.loads(entry) == ["supernet"]
    unfolded = DOCKERFILE.replace("\\\n", " ")
    words = json.loads(re.findall(r"^CMD (.*)", unfolded, re.MULTILINE)[0])
    kept: list[ServeConfig] = []
    monkeypatch.setattr("serve.hosts.uvicorn_host.serve_forever", kept.append)
    monkeypatch.setattr("serve.commands.serve_command.configure_logs", lambda _: None)
    result = CliRunner().invoke(build_app(words), words)
    assert result.exit_code == 0, result.output
    return kept[0]


def test_the_command_of_the_image_is_one_of_ours(monkeypatch: pytest.MonkeyPatch):
    config = command_of_the_image(monkeypatch)
    exposed = re.findall(r"^EXPOSE (.*)", DOCKERFILE, re.MULTILINE)[0].split()
    assert [str(config.port), str(config.grpc_port)] == exposed
    assert f"127.0.0.1:{config.port}/v2/health/ready" in DOCKERFILE


@pytest.mark.parametrize("where", ["image", "cluster"])
def test_what_others_reach_wants_tokens(where: str, monkeypatch: pytest.MonkeyPatch):
    if where == "image":
        config = command_of_the_image(monkeypatch)
    else:
        config = parse_config(SERVED["applications"][0]["args"])
    assert config.host == "0.0.0.0"
    monkeypatch.delenv("SUPERNET_TOKENS", raising=False)
    with pytest.raises(ServeConfigError, match="token"):
        build_guard(config, time.monotonic)
    monkeypatch.setenv("SUPERNET_TOKENS", "me infer 0123456789abcdef0123")
    assert build_guard(config, time.monotonic) is not None


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*RAY_ACCEL.*:FutureWarning")
def test_the_applications_of_the_service_are_valid_for_ray_and_for_us():
    from ray.serve.schema import ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(SERVED).applications
    assert application.import_path == "serve.app:build"
    parse_config(application.args)
    (deployment,) = application.deployments
    parse_live_config(deployment.user_config)


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container with the pod that it is in."""
    cluster = SERVICE["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    return [(container, pod) for pod in pods for container in pod["containers"]]


def test_the_service_is_what_kuberay_takes():
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    cluster = SERVICE["spec"]["rayClusterConfig"]
    pinned = re.findall(r"^ray==(.*)$", Path("constraints.txt").read_text(), re.MULTILINE)
    assert [cluster["rayVersion"]] == pinned
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(type(value) is str for value in group["rayStartParams"].values())
    for container, pod in containers():
        assert f"-t {container['image']} " in DOCKERFILE
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["env"][0]["name"] == "SUPERNET_TOKENS"


def test_every_replica_has_a_worker_of_its_own():
    """Two on one would share its doors, and the cores that the profile was measured with."""
    args = SERVED["applications"][0]["args"]
    (deployment,) = SERVED["applications"][0]["deployments"]
    (group,) = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["cpu"] == str(args["threads"])
    assert deployment["num_replicas"] == group["replicas"]
    ports = {port["containerPort"] for port in worker["ports"]}
    assert {args["door_port"], args["grpc_port"], SERVED["http_options"]["port"]} <= ports
    head = SERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_files_read_from_the_volume_are_on_the_volume():
    args = SERVED["applications"][0]["args"]
    (mount,) = containers()[0][0]["volumeMounts"]
    for setting in ("checkpoint", "profile"):
        assert os.path.commonpath([args[setting], mount["mountPath"]]) == mount["mountPath"]
