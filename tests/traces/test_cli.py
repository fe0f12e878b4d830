from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from traces.cli import app

ROOT = Path(__file__).parents[2]
PROFILE = str(ROOT / "profiles" / "superserve_resnet_2080ti.json")
SPEC = "bursty:base=100,variant=400,cv2=8,duration=2"


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def simulate(*more: object, policy: str = "slackfit", spec: str = SPEC, profile: str = PROFILE):
    options = ("--profile", profile, "--trace", spec, "--policy", policy, "--slo-ms", 36)
    return call("simulate", *options, *more)


def test_simulate_compares_policies_and_writes_json_and_page(tmp_path):
    policies = "slackfit,fixed:smallest,fixed:largest"
    files = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    result = simulate(*files, policy=policies)
    assert result.exit_code == 0, result.output
    reports = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [r["policy"].split(":")[0] for r in reports] == ["slackfit", "fixed", "fixed"]
    assert all(r["wall_s"] is None for r in reports)
    assert all(sum(r["outcomes"].values()) == r["num_queries"] for r in reports)
    assert reports[0]["trace"]["metadata"]["spec"] == SPEC
    assert reports[0]["command"].startswith("supernet simulate --profile")
    assert "met %" in result.stdout
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_same_seed_gives_the_same_bytes_and_stdout_is_json_alone():
    first, again, other = (simulate("--json", "-", "--seed", s).stdout for s in (1, 1, 2))
    assert first == again != other
    assert json.loads(first)[0]["seed"] == 1


def test_simulate_takes_the_deadlines_of_the_trace(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,slo_s\n0.5,0.02\n1.5,0.04\n", encoding="utf-8")
    options = ("--profile", PROFILE, "--trace", path, "--json", "-")
    result = call("simulate", *options)
    assert json.loads(result.stdout)[0]["slo_ms"] == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "nope"}, "policy 'nope' is unknown"),
        ({"policy": "fixed:nope"}, "does not have"),
        ({"spec": "poisson:rate=x,duration=1"}, "rate must be a finite number"),
        ({"spec": "none.csv"}, "none.csv: no such file"),
        ({"profile": "none.json"}, "none.json"),
    ],
)
def test_user_errors_end_with_code_2_and_write_nothing(tmp_path, change, message):
    files = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    result = simulate(*files, **change)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_simulate_without_any_deadline_says_what_to_give():
    result = call("simulate", "--profile", PROFILE, "--trace", SPEC)
    assert (result.exit_code, "--slo-ms" in result.stderr) == (2, True)


def test_report_joins_runs_and_tells_equal_policies_apart(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        assert simulate("--json", folder / "report.json").exit_code == 0
    page = tmp_path / "joined.html"
    result = call("report", tmp_path / "a", tmp_path / "b" / "report.json", "--html", page)
    assert result.exit_code == 0, result.output
    assert f"slackfit ({tmp_path / 'a'})" in page.read_text(encoding="utf-8")
    missing = call("report", tmp_path / "c", "--html", page)
    assert missing.exit_code == 2


def test_trace_info_convert_and_plot(tmp_path):
    parquet, csv = tmp_path / "t.parquet", tmp_path / "t.csv.gz"
    assert call("trace", "convert", SPEC, parquet, "--seed", 3).exit_code == 0
    assert call("trace", "convert", parquet, csv).exit_code == 0
    info = json.loads(call("trace", "info", csv, "--json", "-").stdout)
    direct = json.loads(call("trace", "info", SPEC, "--seed", 3, "--json", "-").stdout)
    assert info["num_queries"] == direct["num_queries"]
    assert info["gap_cv2"] == direct["gap_cv2"]
    assert info["metadata"]["synthetic"] is True
    assert "gap_cv2" in call("trace", "info", csv).stdout
    for name in ("t.png", "t.svg"):
        assert call("trace", "plot", csv, "--out", tmp_path / name).exit_code == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert call("trace", "plot", csv, "--out", tmp_path / "t.doc").exit_code == 2
    assert not (tmp_path / "t.doc").exists()


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_traces_works_with_numpy_alone():
    blocked = (
        "torch ray grpc matplotlib pyarrow rich typer jinja2 scipy pydantic httpx sklearn pandas"
    )
    python(
        "import sys\n"
        f"for name in {blocked.split()!r}: sys.modules[name] = None\n"
        "import traces\n"
        "assert len(traces.parse_spec('poisson:rate=10,duration=5')) > 0\n"
        "assert all(hasattr(traces, name) for name in traces.__all__)"
    )


def test_help_imports_no_heavy_library():
    loaded = python(
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from traces.cli import app\n"
        "assert CliRunner().invoke(app, ['simulate', '--help']).exit_code == 0\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    heavy = {"torch", "ray", "grpc", "matplotlib", "pyarrow", "scipy", "jinja2"}
    assert not heavy & set(loaded.split())


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "traces", "trace", "info", "poisson:rate=5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: bad trace spec: poisson still needs duration"
    assert done.stderr.splitlines()[2].endswith("^")
