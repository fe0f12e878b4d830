"""Part `static` measures ours and a lean server on one trace, and goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve.bench.journal import Journal
from serve.bench.serving.load import LoadScore
from serve.bench.serving.setting import Setting, measured
from serve.bench.static.lean_bench import LeanBench, LeanScale, against_lean
from serve.bench.static.networks import fastest_forms
from slackfit.profile import LatencyProfile, SubnetProfile

SCALE = LeanScale(
    slos_s=(0.5,), loads=(0.1,), systems=("slackfit", "fixed_largest", "lean", "lean_with_drop"),
    duration_s=0.7, capacity_s=0.4,
)  # fmt: skip
ROWS = {"s": (0.7, 1.0), "s-i8": (0.7, 1.5), "m": (0.8, 2.0), "l": (0.9, 4.0), "l-i8": (0.9, 2.0)}


@pytest.fixture(scope="module")
def setting(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    path = tmp_path_factory.mktemp("static") / "profile.json"
    found = measured(checkpoint_folder, None, path, threads=1, tell=lambda text: None)
    return found._replace(load=replace(found.load, warmup_s=0.1))


@pytest.mark.slow
def test_ours_and_a_lean_server_meet_the_same_trace(setting: Setting, tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path / "static.jsonl", {})
    bench = LeanBench(setting, journal, scale=SCALE, tell=told.append)
    bench.run()
    rows = {row["figure"]: row["value"] for row in bench.rows()}
    cell = "static/tiny/slo500/load10"
    for system in SCALE.systems:
        assert rows[f"{cell}/{system}/attainment"] > 0.9
        assert 0 < rows[f"{cell}/{system}/accuracy"] <= 1
    assert rows["static/tiny/capacity"] > 0
    assert f"{cell}/slackfit/attainment_less_lean" in rows
    assert f"{cell}/drainfit/attainment_less_lean" not in rows, "it was not run"
    again = LeanBench(setting, journal, scale=SCALE, tell=told.append)
    before = len(told)
    again.run()
    assert len(told) == before + 1, "nothing is measured twice"
    assert again.rows() == bench.rows()


def test_ours_stands_beside_the_better_lean_server() -> None:
    lean = {"lean": _score(0.90, 0.90), "lean_with_drop": _score(0.95, 0.80)}
    rows = {r["figure"]: r["value"] for r in against_lean("cell", _score(0.94, 0.81), lean)}
    assert rows == {
        "cell/attainment_less_lean": pytest.approx(-0.01),
        "cell/accuracy_less_lean": pytest.approx(0.01),
        "cell/utility_over_lean": pytest.approx(0.94 * 0.81 / (0.90 * 0.90), abs=1e-6),
    }
    nobody = {"lean": _score(0.0, 0.0)}
    assert len(against_lean("cell", _score(0.94, 0.81), nobody)) == 2


def _score(attainment: float, accuracy: float) -> LoadScore:
    on_time = round(1000 * attainment)
    return LoadScore(on_time, 1000, accuracy, None, None, None, 0.0, True, 0.2, 0.5, (0.0, 1.0), {})


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
