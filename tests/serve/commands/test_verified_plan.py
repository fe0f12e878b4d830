"""`supernet plan --verify` against a real server whose device sleeps as profiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve.bench.mixed.timed_server import config_of
from serve.bench.serving.server_process import server_process
from serve.commands.verified_plan import PlanCheck, check_servers, verify_plan
from slackfit.profile import LatencyProfile
from traces.planning.promise import Promise
from traces.spec.spec import parse_spec
from traces.trace import TraceError

pytestmark = [pytest.mark.alone, pytest.mark.slow]


def test_what_is_foretold_is_written_before_anything_is_replayed(tmp_path: Path):
    path = tmp_path / "slower.json"
    profile = LatencyProfile.load(Path("profiles/superserve_resnet_2080ti.json")).scaled(10.0)
    profile.save(path)
    config = config_of(profile=str(path), input_shape=(3, 8, 8), num_classes=10, slo_ms=360.0)
    said: list[str] = []
    foretold: list[dict[str, Any]] = []

    def on_progress(verification: dict[str, Any]) -> None:
        assert sum(line.startswith("replaying") for line in said) == len(foretold)
        foretold.append(json.loads(json.dumps(verification)))

    with server_process(config) as server:
        check = PlanCheck(
            url=server.url, trace=parse_spec("poisson:rate=100,duration=60"), profile=profile,
            promise=Promise(0.99, 0.775), slo_s=0.36, duration_s=2.0,
        )  # fmt: skip
        check_servers(server.url, [profile])
        found = verify_plan(check, on_progress, said.append)
        other = profile.scaled(1.0)
        object.__setattr__(other, "name", "another")
        wrong = PlanCheck(
            url=server.url, trace=check.trace, profile=other, promise=check.promise, slo_s=0.36,
            duration_s=2.0,
        )  # fmt: skip
        with pytest.raises(TraceError, match="the one given is 'another'"):
            verify_plan(wrong, on_progress, said.append)
        with pytest.raises(TraceError, match="the one given is 'another'"):
            check_servers(server.url, [other])
    done = [["live" in level for level in one["levels"]] for one in foretold]
    assert done == [[True] * count + [False] * (4 - count) for count in range(5)]
    before = foretold[0]["levels"]
    assert [level["load"] for level in before] == [0.5, 0.7, 0.85, 0.95]
    assert all("live" not in level for level in before)
    for level, after in zip(before, found["levels"], strict=True):
        assert after["predicted"] == level["predicted"]
        # A shared machine; docs/plan.md tells of a quiet one.
        assert abs(after["error"]["p50_ms"]) < 0.5
        assert abs(after["error"]["slo_attainment"]) < 0.2
    (measured,) = found["servers"]
    assert 0 < measured["idle_ms"] < 100
    assert measured["policy"] == "drainfit"


def test_two_servers_are_foretold_and_replayed_together(tmp_path: Path):
    path = tmp_path / "slower.json"
    profile = LatencyProfile.load(Path("profiles/superserve_resnet_2080ti.json")).scaled(10.0)
    profile.save(path)
    config = config_of(profile=str(path), input_shape=(3, 8, 8), num_classes=10, slo_ms=360.0)
    capacities: list[float] = []
    with server_process(config) as one, server_process(config) as other:
        for url in (one.url, f"{one.url},{other.url}"):
            check = PlanCheck(
                url=url, trace=parse_spec("poisson:rate=100,duration=60"), profile=profile,
                promise=Promise(0.99, 0.775), slo_s=0.36, duration_s=2.0,
            )  # fmt: skip
            found = verify_plan(check, lambda _: None, lambda _: None)
            capacities.append(found["capacity_qps"])
    assert [server["url"] for server in found["servers"]] == [one.url, other.url]
    assert 1.6 * capacities[0] < capacities[1] < 2.6 * capacities[0]
    for level in found["levels"]:
        # Half of it would be lost if one of the two had to serve it all.
        assert abs(level["error"]["slo_attainment"]) < 0.2
