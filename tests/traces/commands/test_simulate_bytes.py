"""`supernet simulate` writes the bytes that it wrote when their hashes were stored.

What only moves or renames code keeps all of them. A change that alters a policy or a generator on
purpose renews the file with SUPERNET_RENEW_HASHES=1, and its commit says which runs and why.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.cli import build_app

PUBLISHED = Path("profiles/superserve_resnet_2080ti.json").resolve()
STORED = Path(__file__).with_name("simulate_hashes.json")
RENEW = os.environ.get("SUPERNET_RENEW_HASHES") == "1"

TENANTS = " + ".join(
    (
        "bursty:base=700,variant=1900,cv2=4,duration=4,class=0,slo_ms=36",
        "poisson:rate=600,duration=4,class=1,slo_ms=15",
        "gamma:rate=200,cv2=2,duration=4,class=0,slo_ms=120",
    )
)
TRACES: dict[str, list[str]] = {
    "poisson": ["poisson:rate=3600,duration=4"],
    "tenants": [TENANTS],
    "azure-events-noise": [
        "azure2019-shape:qps=2600,duration=4", "--events", "1@1.5,1.5x0@2", "--noise",
    ],
}  # fmt: skip
POLICIES = ("slackfit", "drainfit", "maxbatch", "infaas", "proteus")
RUNS = [
    f"{trace} {policy} seed={seed}" for trace, policy, seed in product(TRACES, POLICIES, (0, 1))
]
AGAIN = [pytest.param(run, marks=pytest.mark.slow) for run in RUNS if run.endswith("1")]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published table with quantiles, which `--noise` draws from."""
    table = json.loads(PUBLISHED.read_text())
    for subnet in table["subnets"]:
        for quantile, factor in (("p95", 1.25), ("p99", 1.5)):
            p50 = subnet["latency_ms"]["p50"]
            subnet["latency_ms"][quantile] = [value * factor for value in p50]
    path: Path = tmp_path_factory.mktemp("profile") / "profile.json"
    path.write_text(json.dumps(table))
    return path


def digest_of(run: str, folder: Path) -> str:
    trace, policy, seed = run.split()
    words = ["simulate", "--profile", "profile.json", "--trace", *TRACES[trace]]
    words += ["--policy", policy, "--workers", "2", "--slo-ms", "36"]
    words += ["--seed", seed.removeprefix("seed="), "--json", "report.json"]
    result = CliRunner().invoke(build_app(words), words)
    assert result.exit_code == 0, result.output
    return hashlib.sha256((folder / "report.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("run", [*(run for run in RUNS if run.endswith("0")), *AGAIN])
def test_the_same_bytes_as_stored(
    run: str, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "profile.json").symlink_to(profile)
    monkeypatch.chdir(tmp_path)
    digest = digest_of(run, tmp_path)
    stored = json.loads(STORED.read_text())
    if RENEW:
        STORED.write_text(json.dumps({**stored, run: digest}, indent=1) + "\n")
    else:
        assert digest == stored[run]


def test_every_stored_hash_is_of_a_run():
    assert list(json.loads(STORED.read_text())) == RUNS
