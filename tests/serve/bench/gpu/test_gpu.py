"""Every line of the GPU benchmark runs, on a CPU and tiny networks; its times mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serve.bench.gpu.__main__ import main
from slackfit.profile import LatencyProfile


def test_the_dry_run_writes_rows_of_every_part_and_a_profile(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    options = ["--device", "cpu", "--json", str(out), "--profiles", str(tmp_path)]
    assert main(options) == 0
    rows = json.loads(out.read_text())
    figures = {row["figure"]: row for row in rows}
    assert len(figures) == len(rows)
    assert figures["gpu/equality_failures"]["value"] == 0
    for wanted in (
        "gpu/equality/resnet_tiny/bfloat16/folded/budget_50%/graph_over_eager",
        "gpu/resnet_tiny/mid/b2/folded_graph_over_static_eager",
        "gpu/resnet_tiny/max/b1/shared_graph_over_static_graph",
        "gpu/resnet_tiny/min/b1/folded_graph_over_compiled",
        "gpu/resnet_tiny/max/b2/budget_40%_over_no_budget",
        "gpu/resnet_tiny/switch_p99",
        "gpu/resnet_tiny/after_a_switch_over_after_itself",
        "gpu/sgs/phases/b1/value_per_byte_over_no_cache",
        "gpu/profile/largest/b2",
    ):
        assert figures[wanted]["value"] > 0 or "equality" in wanted
        assert set(figures[wanted]) >= {"unit", "detail", "device", "driver", "torch", "date"}
    (path,) = tmp_path.glob("resnet_tiny_six_*.json")
    profile = LatencyProfile.load(path)
    assert (profile.dtype, profile.packing, len(profile.subnets)) == ("bfloat16", "folded", 4)
    assert "CUDA graphs" in profile.source


def test_a_part_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("serve.bench.gpu.__main__.streaming", broken)
    out = tmp_path / "rows.json"
    base = ["--device", "cpu", "--json", str(out), "--parts", "streaming,switching"]
    assert main(base) == 1
    figures = {row["figure"]: row for row in json.loads(out.read_text())}
    assert "CUDA out of memory" in figures["gpu/streaming/failed"]["detail"]
    assert "gpu/resnet_tiny/switch_p50" in figures
    assert main([*base, "--minutes", "0"]) == 0
    assert [row["figure"] for row in json.loads(out.read_text())] == [
        "gpu/streaming/skipped",
        "gpu/switching/skipped",
    ]
    assert main(["--device", "cpu", "--parts", "speed"]) == 2
    assert "unknown part speed; allowed equality, latency" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no CUDA device is available; use cpu" in capsys.readouterr().err
