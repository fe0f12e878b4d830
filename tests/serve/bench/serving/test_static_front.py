"""The static part measures ours and a lean server on one trace, and goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve.bench.journal import Journal
from serve.bench.serving.setting import Setting, measured
from serve.bench.serving.static_front import StaticBench, StaticScale, fastest_forms
from slackfit.profile import LatencyProfile, SubnetProfile

SCALE = StaticScale(
    slos_s=(0.5,), loads=(0.1,), systems=("slackfit", "fixed_largest", "lean", "lean_with_drop"),
    duration_s=0.7, capacity_s=0.4,
)  # fmt: skip
ROWS = {"s": (0.7, 1.0), "s-i8": (0.7, 1.5), "m": (0.8, 2.0), "l": (0.9, 4.0), "l-i8": (0.9, 2.0)}


@pytest.fixture(scope="module")
def setting(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    path = tmp_path_factory.mktemp("static") / "profile.json"
    found = measured(checkpoint_folder, None, path, threads=1, tell=lambda text: None)
    return found._replace(load=replace(found.load, warmup_s=0.1))


@pytest.mark.alone
def test_ours_and_a_lean_server_meet_the_same_trace(setting: Setting, tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path / "static.jsonl", {})
    bench = StaticBench(setting, journal, scale=SCALE, tell=told.append)
    bench.run()
    rows = {row["figure"]: row["value"] for row in bench.rows()}
    cell = "static/tiny/slo500/load10"
    for system in SCALE.systems:
        assert rows[f"{cell}/{system}/attainment"] > 0.9
        assert 0 < rows[f"{cell}/{system}/accuracy"] <= 1
    assert rows["static/tiny/capacity"] > 0
    again = StaticBench(setting, journal, scale=SCALE, tell=told.append)
    before = len(told)
    again.run()
    assert len(told) == before + 1, "nothing is measured twice"
    assert again.rows() == bench.rows()


def test_a_static_network_is_given_its_fastest_precision(setting: Setting) -> None:
    subnets = tuple(
        SubnetProfile(subnet_id=i, accuracy=a, macs=1, latency_s={"p50": (t,)})
        for i, (a, t) in ROWS.items()
    )
    profile = LatencyProfile(
        name="p", device="d", dtype="float32", batch_sizes=(1,), subnets=subnets
    )
    forms = fastest_forms(setting._replace(profile=profile))
    assert forms == {"smallest": "s", "middle": "m", "largest": "l-i8"}
