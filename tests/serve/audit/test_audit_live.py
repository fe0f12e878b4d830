"""The command against real servers: who may be audited, and one short audit of both sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from serve.audit.audit import SIDES, LocalAudit
from serve.audit.audit_images import AuditImages
from serve.audit.command import _summary
from serve.audit.copying.copies import CopyScale
from serve.audit.endpoint import audit_endpoint, may_audit
from serve.audit.local_servers import LocalServers, spread_front
from serve.audit.page import audit_page
from serve.audit.side import AttackScale
from serve.bench.journal import Journal
from serve.client.rest_answers import ClientError
from supernet.checkpoint import load_checkpoint

RELEASE = Path("models/cifar10_resnet20")
SHORT = AttackScale(
    share_queries=300,
    open_share_queries=100,
    timing_idle=1,
    timing_loaded=6,
    honest_s=2.0,
    pool=60,
    checks=260,
)
pytestmark = pytest.mark.alone


def test_fourteen_subnets_are_spread_over_the_front():
    front = spread_front(load_checkpoint(RELEASE).subnets, 14)
    assert len(front) == 14
    accuracies = [subnet.accuracy for subnet in front]
    assert accuracies == sorted(set(accuracies))
    assert front[-1].subnet_id == "d3-w1-e1-r32"
    with pytest.raises(ValueError, match="the front has 3 subnets, an audit needs 8 or more"):
        spread_front(front[:3], 14)


def test_only_who_may_audit_does(running, profile_file, tmp_path, monkeypatch):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"bob infer {'b' * 16}\neve infer,audit {'e' * 16}\n")
    with running(profile_file, "--no-ray", "--set", f"tokens_file={tokens}") as server:
        monkeypatch.setenv("SUPERNET_TOKEN", "b" * 16)
        with pytest.raises(ClientError, match="lets nobody audit it with this token: 403"):
            may_audit(server.url)
        monkeypatch.setenv("SUPERNET_TOKEN", "e" * 16)
        assert may_audit(server.url) is False
    monkeypatch.delenv("SUPERNET_TOKEN")
    with pytest.raises(ClientError, match="put a token of scope `audit` into SUPERNET_TOKEN"):
        may_audit("http://192.0.2.1:8000")
    with pytest.raises(ClientError, match="give `local`, or a URL"):
        may_audit("grpc://127.0.0.1:1")


def test_what_a_rate_limit_ends_is_left_out_and_counts_as_evidence(
    running, profile_file, tmp_path, monkeypatch
):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"eve infer,audit {'e' * 16}\n")
    monkeypatch.setenv("SUPERNET_TOKEN", "e" * 16)
    limits = {"tokens_file": tokens, "rate_limit_qps": 0.01, "rate_limit_burst": 20}
    sets = [word for item in limits.items() for word in ("--set", "{}={}".format(*item))]
    noise = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 2), dtype=np.uint8)
    told: list[str] = []
    with running(profile_file, "--no-ray", *sets) as server:
        images = AuditImages(noise, None, None, "noise")
        record = audit_endpoint(server.url, images, scale=SHORT, seed=0, tell=told.append)
    found = record["undefended"]
    assert found["fingerprint"] is found["timing"] is found["share"] is None
    limited = "the server lets this principal ask no more for now"
    assert record["left_out"]["fingerprint"] == record["left_out"]["share"] == limited
    rows = {row["line"]: row for row in found["checklist"]}
    assert rows["C11.5.1"]["passed"] is True
    assert rows["C11.5.1"]["evidence"].startswith("refused after 21 queries")
    assert rows["identity"]["passed"] is False
    assert "nothing could be asked" in _summary(record)
    assert "OWASP AISVS" in audit_page(record)


@pytest.mark.slow
def test_an_endpoint_on_loopback_is_attacked(running_any, tmp_path):
    servers = LocalServers(RELEASE, load_checkpoint(RELEASE), tmp_path)
    profile = tmp_path / "profile.json"
    servers.profile(1e-3).save(profile)
    images = AuditImages(
        np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32), dtype=np.uint8),
        None, None, "noise",
    )  # fmt: skip
    with running_any(
        "--no-ray", "--device", "timed", "--checkpoint", str(RELEASE), "--profile", str(profile)
    ) as server:
        record = audit_endpoint(server.url, images, scale=SHORT, seed=0, tell=print)
    assert record["defended"] is None
    assert record["undefended"]["share"]["naive"] > 0.9
    json.dumps(record, allow_nan=False)


@pytest.mark.slow
def test_a_short_audit_fills_the_record_and_goes_on_where_it_stopped(tmp_path, rng):
    loaded = load_checkpoint(RELEASE)
    images = AuditImages(
        rng.integers(0, 256, (160, 3, 32, 32), dtype=np.uint8),
        rng.integers(0, 10, 160),
        rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8),
        "noise",
    )
    told: list[str] = []

    def run() -> dict:
        return LocalAudit(
            LocalServers(RELEASE, loaded, tmp_path / "servers"),
            RELEASE,
            images,
            Journal(tmp_path / "audit.jsonl", {"n": 1}),
            tmp_path,
            scale=SHORT,
            copies=CopyScale(budgets=(20, 40), seeds=2),
            seed=0,
            tell=told.append,
        ).run()

    record = run()
    for side in SIDES:
        assert record[side]["share"].keys() >= {"naive", "adaptive", "repetition_gain"}
        assert record[side]["timing"].keys() >= {"accuracy", "chance"}
        assert record[side]["fingerprint"].keys() >= {"queries_one", "queries_all"}
        assert record[side]["extraction"]
        assert 0 <= record[side]["goodput"] <= 1
    assert record["undefended"]["served_accuracy_lost"] == 0.0
    assert record["undefended"]["share"]["naive"] == 1.0
    assert record["defended"]["share"]["naive"] < 0.5
    assert record["defended"]["fingerprint"]["queries_one"] is None
    rows = {row["line"]: row["passed"] for row in record["defended"]["checklist"]}
    assert rows["identity"]
    assert rows["C11.5.3"]
    assert not {r["line"]: r["passed"] for r in record["undefended"]["checklist"]}["identity"]
    assert json.loads(json.dumps(record, allow_nan=False))
    assert "Extraction" in audit_page(record)
    told.clear()
    assert run()["defended"]["share"] == record["defended"]["share"]
    assert not [text for text in told if text.endswith("...")]
