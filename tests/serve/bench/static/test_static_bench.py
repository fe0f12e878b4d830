"""Which networks part `static` compares: the published ones, or the checkpoint that was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.bench.serving import bench as serving_bench
from serve.bench.serving.bench import ServingBench
from serve.bench.serving.load import Load
from serve.bench.serving.setting import Setting
from serve.bench.static import bench as static_bench
from serve.bench.static.front_bench import FrontBench
from serve.bench.static.lean_bench import LeanBench
from slackfit.profile import LatencyProfile


@pytest.fixture
def ran(
    profile: LatencyProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """What was compared, on which network; nothing is measured."""
    found: list[tuple[str, str]] = []

    def setting(name: str) -> Setting:
        load = Load(model=name, slo_s=0.1, data=None)
        return Setting(tmp_path, tmp_path / "profile.json", profile, load, 1, (1, 2, 2))

    for kind in (FrontBench, LeanBench):
        monkeypatch.setattr(
            kind, "run", lambda self: found.append((type(self).__name__, self._setting.load.model))
        )
    monkeypatch.setattr(static_bench, "ofa_resnet50_setting", lambda *_, **__: setting("resnet"))
    for module in (static_bench, serving_bench):
        monkeypatch.setattr(module, "measured", lambda folder, *_, **__: setting(folder.name))
    monkeypatch.chdir(tmp_path)  # no demo's checkpoint there
    return found


def test_without_a_checkpoint_it_is_the_published_networks(
    ran: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows = ServingBench(tmp_path / "out", tell=lambda text: None).run(["static"])
    assert ran == [("FrontBench", "resnet"), ("LeanBench", "cifar10_resnet20")]
    assert rows == [], "no SLO of a demo, and nothing was measured"


def test_where_the_released_supernet_is_absent_it_is_left_out(
    ran: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_bench, "CIFAR_FOLDER", tmp_path / "nowhere")
    told: list[str] = []
    ServingBench(tmp_path / "out", tell=told.append).run(["static"])
    assert ran == [("FrontBench", "resnet")]
    assert any("nowhere is not there" in line for line in told)


def test_a_checkpoint_that_was_named_meets_the_lean_server(
    ran: list[tuple[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "supernet.json").write_text("{}")
    bench = ServingBench(tmp_path / "out", checkpoint=folder, tell=lambda text: None)
    rows = bench.run(["static"])
    assert ran == [("LeanBench", "mine")]
    assert [row["figure"] for row in rows] == ["serving/slo"]
