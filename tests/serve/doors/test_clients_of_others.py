"""tritonclient (HTTP and gRPC) and curl against a real server process, as users run them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.alone

SESSION = Path(__file__).with_name("triton_session.py")
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [3] * 4}]}
# What one idle query gets is sure with SlackFit: DrainFit holds back until it knows the load.
SETTINGS = ("--slo-ms", "500", "--policy", "slackfit")
HOSTS = [
    pytest.param(("--no-ray",), id="without-ray"),
    pytest.param((), id="on-ray", marks=[pytest.mark.ray, pytest.mark.slow]),
]


@pytest.mark.parametrize("options", HOSTS)
def test_tritonclient_works_unmodified(running, profile_file: Path, wire_python: str, options):
    with running(profile_file, *SETTINGS, *options) as server:
        done = subprocess.run(
            [wire_python, str(SESSION), server.address, server.rpc_address],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for name in ("http", "grpc"):
        check_session(seen[name])
    assert seen["http"]["timeout"].startswith("504: no subnet")
    assert seen["grpc"]["timeout"].startswith("StatusCode.DEADLINE_EXCEEDED: no subnet")
    assert seen["http"]["unknown_model"].startswith("404: ")
    assert seen["grpc"]["unknown_model"].startswith("StatusCode.NOT_FOUND: ")
    assert seen["grpc"]["bad_tensor"].startswith("StatusCode.INVALID_ARGUMENT: ")


def check_session(seen: dict[str, Any]) -> None:
    assert seen["is_live"]
    assert seen["is_ready"]
    assert seen["id"] == "q7"
    assert seen["labels"] == [3, 7]
    assert seen["image_labels"] == [4, 8], "four pixels of 1, four of 2"
    assert seen["pinned"] == "small"
    assert seen["versions"] == ["small", "middle", "large"]
    assert seen["max_batch_size"] == 4
    assert seen["served"]["small"] >= 2
    assert seen["served"]["large"] >= 2
    assert "allowed [B, 1, 2, 2]" in seen["bad_tensor"]
    about = seen["parameters"]
    assert (about["subnet"], about["accuracy"], about["status"]) == ("large", 0.9, "on_time")
    assert about["queue_s"] >= 0
    assert about["execution_s"] > 0
    assert 0 < about["slack_s"] < 0.5


def curl(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON that curl got."""
    done = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", *arguments],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    body, _, code = done.stdout.rpartition("\n")
    return int(code), json.loads(body)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", HOSTS)
def test_curl_sends_tensors_and_image_files(running, profile_file: Path, tmp_path: Path, options):
    images = {suffix: tmp_path / f"seven.{suffix}" for suffix in ("png", "jpeg")}
    for path in images.values():
        Image.new("L", (2, 2), 2).save(path)
    with running(profile_file, *SETTINGS, *options) as server:
        url = f"{server.url}/v2/models/tiny/infer"
        code, answer = curl(url, "-d", json.dumps(BODY), "-H", "x-slo-ms: 200")
        assert (code, answer["model_version"]) == (200, "large")
        assert answer["outputs"][0]["data"].index(1.0) == 2
        for suffix, path in images.items():
            header = f"content-type: image/{suffix}"
            code, answer = curl(url, "-H", header, "--data-binary", f"@{path}")
            assert (code, answer["outputs"][0]["data"].index(1.0)) == (200, 8)
        code, error = curl(url, "-d", json.dumps(BODY), "-H", "x-slo-ms: 0.1")
        assert (code, error["reason"]) == (504, "infeasible")
        assert error["earliest_finish_s"] > 0
        code, error = curl(url, "-H", "content-type: image/png", "--data-binary", "not a png")
        assert (code, error["reason"]) == (400, "bad_tensor")
        code, error = curl(f"{server.url}/v2/models/nobody/infer", "-d", "{}")
        assert (code, error["reason"]) == (404, "unknown_model")
