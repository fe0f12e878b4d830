from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serve.demo import demo, largest_capacity_qps, trace_spec, train_supernet
from slackfit.profile import LatencyProfile
from training.config import TrainConfig
from training.trainer.resume import RESUME_FILE, ResumeError


def test_the_default_trace_offers_a_share_of_what_the_largest_subnet_can_do() -> None:
    profile = LatencyProfile.load("profiles/superserve_resnet_2080ti.json")
    assert largest_capacity_qps(profile) == pytest.approx(16 / 0.0307)
    assert trace_spec(None, rate_qps=88.7) == "azure2019-shape:qps=89,duration=24"


def test_a_genuine_trace_without_a_rate_gets_the_default_one() -> None:
    spec = trace_spec("azure2019:path=day.csv,...", rate_qps=50)
    assert spec == "azure2019:path=day.csv,qps=50,duration=24"
    asked = "azure2019:path=day.csv,qps=20,duration=5"
    assert trace_spec(asked, rate_qps=50) == asked
    assert trace_spec("poisson:rate=5,duration=1", rate_qps=50) == "poisson:rate=5,duration=1"


def test_a_wrong_trace_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    app = typer.Typer()
    app.command()(demo)
    words = ["--out", str(tmp_path / "demo"), "--trace", "poisson:rat=5"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "has no key 'rat'" in refused.stderr
    assert not (tmp_path / "demo").exists()


def test_a_run_of_another_version_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RESUME_FILE).write_bytes(b"of another version")
    resumed: list[bool] = []

    def stop(config: TrainConfig, folder: Path, *, resume: bool) -> None:
        resumed.append(resume)
        assert resume == (folder / RESUME_FILE).exists()
        if resume:
            raise ResumeError("another config")

    monkeypatch.setattr("serve.demo.train_with_progress", stop)
    with pytest.raises(typer.Exit):
        train_supernet(tmp_path)
    assert resumed == [True, False]
