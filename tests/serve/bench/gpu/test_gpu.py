"""Every line of the GPU benchmark runs, on a CPU and tiny networks; its times mean nothing here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from serve.bench.gpu.__main__ import PARTS, main
from serve.bench.gpu.bars import read_bars
from serve.bench.gpu.cases import GpuBench
from slackfit.policies import policy_names
from slackfit.profile import LatencyProfile

ABSENT = (
    "ray pydantic typer rich grpc starlette uvicorn httpx aiohttp prometheus_client onnx "
    "onnxruntime onnxscript matplotlib pyarrow jinja2 sklearn numba tensorboard"
)
"""An image for training has torch, numpy, scipy and safetensors, and little else."""


def run_without_what_serves(*options: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT.split()!r}))\n"
        "from serve.bench.gpu.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "--device", "cpu", *options],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_dry_run_writes_rows_of_every_part_and_a_profile(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = run_without_what_serves("--json", str(out), "--profiles", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    figures = {row["figure"]: row for row in rows}
    assert len(figures) == len(rows)
    assert figures["gpu/failed_parts"]["value"] == figures["gpu/disagreements"]["value"] == 0
    assert figures["gpu/equality_failures"]["value"] == 0
    assert figures["gpu/smoke/bfloat16/streamed/over_extracted"]["value"] < 0.05
    assert figures["gpu/decoding/decoder_tiny/float32/graph/over_extracted"]["value"] < 1e-5
    assert figures["gpu/bytes/ofa_resnet50/random/n500/one_copy_norms_float16"]["value"] <= 275
    assert figures["gpu/bytes/ofa_resnet50/random/n500/one_copy_norms_float32"]["value"] <= 320
    for wanted in (
        "gpu/equality/resnet_tiny/bfloat16/folded/budget_50%/graph_over_eager",
        "gpu/resnet_tiny/mid/b2/folded_graph_over_static_eager",
        "gpu/resnet_tiny/max/b1/shared_graph_over_static_graph",
        "gpu/compiled/resnet_tiny/min/b1/default/replay_over_compiled",
        "gpu/compiled/resnet_tiny/min/b1/default/replay_over_compiled_on_device",
        "gpu/compiled/resnet_tiny/max/b1/replay_over_best",
        "gpu/decoding/decoder_tiny/bfloat16/c64/n2/half_over_full",
        "gpu/resnet_tiny/max/b2/budget_40%_over_no_budget",
        "gpu/resnet_tiny/switch_p99",
        "gpu/resnet_tiny/after_a_switch_over_after_itself",
        "gpu/loading/resnet_tiny/0/page_locked",
        "gpu/engine/resnet_tiny/mid/b1/device_busy",
        "gpu/training/resnet_tiny/full_model/images_per_s",
        "gpu/training/resnet_tiny/deps/images_per_s",
        "gpu/sgs/phases/b1/value_per_byte_over_no_cache",
        "gpu/profile/largest/b2",
        "gpu/overlap/resnet_tiny/min/b2/over_launch_and_wait",
    ):
        assert figures[wanted]["value"] > 0 or "equality" in wanted
        assert set(figures[wanted]) >= {"unit", "detail", "device", "driver", "torch", "date"}
    for policy in policy_names():
        if policy != "fixed:<subnet_id>":
            row = figures[f"gpu/trace/azure/{policy}/attainment"]
            assert 0 < row["value"] <= 1
            assert "azure2019-shape" in row["detail"]
    absent = {name: row["detail"] for name, row in figures.items() if row["value"] is None}
    assert all(absent.values())
    assert absent["gpu/memory/resnet_tiny/six/n4/extracted"].startswith("a CPU counts no bytes")
    assert (
        "need a CUDA device"
        in absent["gpu/compiled/resnet_tiny/mid/b1/reduce-overhead/replay_over_compiled"]
    )
    for bar in read_bars():
        pattern = bar.rows.replace("b64", "b2")
        assert any(fnmatchcase(name, pattern) for name in figures), bar
    assert "holds   gpu/failed_parts: 0" in done.stdout
    assert "absent  gpu/trace/azure/drainfit/attainment: measured on a CPU" in done.stdout
    (path,) = tmp_path.glob("resnet_tiny_six_*.json")
    profile = LatencyProfile.load(path)
    assert (profile.dtype, profile.packing, len(profile.subnets)) == ("bfloat16", "folded", 4)
    assert "CUDA graphs" in profile.source


def test_a_part_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(PARTS, "streaming", broken)
    out = tmp_path / "rows.json"
    base = ["--device", "cpu", "--json", str(out), "--parts", "streaming,switching"]
    assert main(base) == 1
    figures = {row["figure"]: row for row in json.loads(out.read_text())}
    assert "CUDA out of memory" in figures["gpu/streaming/failed"]["detail"]
    assert "gpu/resnet_tiny/switch_p50" in figures
    assert figures["gpu/failed_parts"]["value"] == 1
    assert figures["gpu/failed_parts"]["detail"] == "streaming"
    assert "missed  gpu/failed_parts: 1, bar <= 0" in capsys.readouterr().out
    assert main([*base, "--minutes", "0"]) == 0
    assert [row["figure"] for row in json.loads(out.read_text())] == [
        "gpu/streaming/skipped",
        "gpu/switching/skipped",
        "gpu/failed_parts",
        "gpu/disagreements",
    ]
    assert main(["--device", "cpu", "--parts", "speed"]) == 2
    assert "unknown part speed; allowed smoke, equality, latency" in capsys.readouterr().err


def test_bytes_of_a_dry_run_are_held_to_their_bars_and_its_times_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that is named twice runs once: figures that are there twice are not compared."""
    over = [1.0]

    def part(bench: GpuBench) -> None:
        bench.record("memory/x/n4/folded_held_over_counted", over[0], "ratio", "")
        bench.record("overlap/x/min/b2/over_launch_and_wait", 1.0, "ratio", "an idle machine")

    monkeypatch.setitem(PARTS, "bytes", part)
    base = ["--device", "cpu", "--json", str(tmp_path / "rows.json"), "--parts", "bytes,bytes"]
    assert main(base) == 0
    assert "missed  gpu/overlap/x/min/b2/over_launch_and_wait: 1" in capsys.readouterr().out
    over[0] = 1.5
    assert main(base) == 1
    assert "missed  gpu/memory/x/n4/folded_held_over_counted: 1.5" in capsys.readouterr().out


@pytest.mark.alone
def test_a_batch_launched_behind_the_one_that_runs_hides_the_host(tmp_path: Path) -> None:
    """The engine, its threads and the CUDA executor on a device that is made up; 2.0 is perfect.

    How much it is without other work is for the virtual clock of test_under_way to say.
    """
    out = tmp_path / "rows.json"
    assert main(["--device", "cpu", "--parts", "overlap", "--json", str(out)]) == 0
    (row,) = [row for row in json.loads(out.read_text()) if "overlap" in row["figure"]]
    print(row["detail"])
    assert row["value"] >= 1.4


def test_every_row_is_kept_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.json"
    seen: list[int] = []

    def killed(bench: GpuBench) -> None:
        for number in range(3):
            bench.record(f"made/{number}", number, "count", "")
            bench.absent(f"absent/{number}", "ms", "not here")
            seen.append(len(json.loads(out.read_text())))
        raise KeyboardInterrupt

    monkeypatch.setitem(PARTS, "smoke", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["--device", "cpu", "--json", str(out)])
    assert seen == [2, 4, 6]
    rows = json.loads(out.read_text())
    assert len(rows) == 6
    assert (rows[1]["value"], rows[1]["detail"]) == (None, "not here")


def test_an_image_without_what_serves_runs_the_smoke_part(tmp_path: Path) -> None:
    done = run_without_what_serves("--parts", "smoke", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rows.json").read_text())


def test_without_docs_a_run_stands_and_says_why_it_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is installed as a package has no docs/."""
    monkeypatch.setattr("serve.bench.gpu.bars.BARS_PAGE", tmp_path / "none.md")
    base = ["--device", "cpu", "--parts", "switching", "--minutes", "0"]
    assert main([*base, "--json", str(tmp_path / "rows.json")]) == 0
    assert "run this in a checkout" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no CUDA device is available; use cpu" in capsys.readouterr().err


def test_the_reference_has_exactly_its_options_and_the_page_its_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    reference = Path("docs/reference.md").read_text(encoding="utf-8")
    section = reference.split("### python -m serve.bench.gpu\n")[1].split("\n###")[0]
    assert set(re.findall(r"--[a-z]+", section)) == told
    page = Path("docs/actuation.md").read_text(encoding="utf-8").split("## CUDA")[1]
    firsts = [line.split("|")[1] for line in page.splitlines() if "|" in line]
    assert set(PARTS) <= set(re.findall(r"`(\w+)`", " ".join(firsts)))
