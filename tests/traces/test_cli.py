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


def test_a_slower_device_is_simulated_and_the_scheduler_is_not_told(tmp_path):
    slow = json.loads(Path(PROFILE).read_text())
    for subnet in slow["subnets"]:
        subnet["latency_ms"] = {
            q: [2 * ms for ms in row] for q, row in subnet["latency_ms"].items()
        }
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    fast, mixed = (
        json.loads(simulate("--workers", 2, "--devices", devices, "--json", "-").stdout)[0]
        for devices in (f"{PROFILE},{PROFILE}", f"{PROFILE},{tmp_path / 'slow.json'}")
    )
    assert fast["latency_ms"] != mixed["latency_ms"]
    assert fast["slo_attainment"] == 1.0 > mixed["slo_attainment"]


def test_noise_is_drawn_from_the_quantiles_of_the_profile(tmp_path):
    wide = json.loads(Path(PROFILE).read_text())
    for subnet in wide["subnets"]:
        subnet["latency_ms"]["p99"] = [3 * ms for ms in subnet["latency_ms"]["p50"]]
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    still, noisy = (
        json.loads(simulate(*more, "--json", "-", profile=str(tmp_path / "wide.json")).stdout)[0]
        for more in ((), ("--noise",))
    )
    assert noisy["latency_ms"]["p99"] > still["latency_ms"]["p99"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--noise",), "noise needs quantiles beyond p50"),
        (("--devices", f"{PROFILE},{PROFILE}"), "profiles has 2 for 1 workers"),
        (("--devices", "dynabert.json"), "dynabert.json"),
        (("--devices", f"{PROFILE},"), "--devices: expected a profile file per device"),
        (("--devices", PROFILE.replace("resnet", "dynabert")), "lacks subnets resnet-73.82"),
        (("--stream", "--noise"), "--stream goes without --noise"),
    ],
)
def test_devices_that_do_not_fit_are_refused(more, message):
    result = simulate(*more)
    assert result.exit_code == 2
    assert message in result.stderr


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
    assert "slackfit (a)" in page.read_text(encoding="utf-8")
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


def test_find_capacity_reports_the_highest_rate_that_meets_the_target(tmp_path):
    chrome = tmp_path / "schedule.json"
    options = ("--workers", 8, "--find-capacity", "attainment=0.99", "--json", "-")
    options += ("--chrome", chrome)
    policies = "fixed:smallest,fixed:largest"
    result = simulate(*options, policy=policies, spec="gamma:rate=900,cv2=2,duration=2")
    smallest, largest = json.loads(result.stdout)
    assert smallest["capacity_qps"] > 3 * largest["capacity_qps"] > 3000
    assert smallest["slo_attainment"] >= 0.99
    assert smallest["capacity_target"] == "attainment=0.99"
    assert "--find-capacity attainment=0.99" in smallest["command"]
    events = json.loads(chrome.read_text(encoding="utf-8"))["traceEvents"]
    for pid, report in enumerate((smallest, largest)):  # of all rates tried, the one reported
        ran = [e["args"]["queries"] for e in events if e["ph"] == "X" and e["pid"] == pid]
        assert sum(ran) == sum(report["outcomes"][s] for s in ("on_time", "late", "failed"))


def test_bound_overhead_events_and_interpolated_subnets_from_the_command_line(tmp_path):
    chrome = tmp_path / "schedule.json"
    options = ("--workers", 2, "--bound", "--overhead-ms", 6, "--subnets", 20)
    options += ("--events", "1@1.0,2x0@0.5", "--chrome", chrome, "--json", "-")
    result = simulate(*options, policy="drainfit,slackfit@num_buckets=40")
    assert result.exit_code == 0, result.output
    ours, theirs = json.loads(result.stdout)
    assert 0 < ours["of_bound"] <= 1
    assert ours["bound"] == theirs["bound"]
    assert (ours["policy"], theirs["policy"]) == ("drainfit", "slackfit@num_buckets=40")
    assert ours["profile"] == "superserve_resnet_2080ti-dense18+6ms"
    events = json.loads(chrome.read_text(encoding="utf-8"))["traceEvents"]
    blocks = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["tid"]) for event in blocks} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(event["ts"] < 1.0e6 for event in blocks if event["tid"] == 1)
    served = sum(event["args"]["queries"] for event in blocks if event["pid"] == 1)
    assert served == sum(theirs["outcomes"][s] for s in ("on_time", "late", "failed"))


def test_a_streamed_run_has_no_series_and_repeats():
    spec = "gamma:rate=500,cv2=4,duration=25"
    first, again = (simulate("--stream", "--json", "-", spec=spec).stdout for _ in range(2))
    assert first == again
    report = json.loads(first)[0]
    assert report["mode"] == "streamed"
    assert "series" not in report
    assert report["num_queries"] == pytest.approx(12_500, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--events", "x"), "event 'x' is not understood"),
        (("--events", "1@1.2.3"), "event '1@1.2.3' is not understood"),
        (("--events", "7@1"), "is of an unknown worker"),
        (("--subnets", "7"), "num_subnets is 7 for 6 measured"),
        (("--find-capacity", "speed"), "target 'speed' is not understood"),
        (("--find-capacity", "utility=0.7.9"), "target 'utility=0.7.9' is not understood"),
        (("--stream", "--bound", "--noise"), "--stream goes without --noise, --bound"),
        (("--stream", "--html", "a.html", "--chrome", "b.json"), "without --html, --chrome"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(options, message):
    result = simulate(*options)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_sweep_writes_rows_and_pictures(tmp_path):
    options = ("--profile", PROFILE, "--rates", "2000:8000:6000", "--burstiness", "1,4")
    options += ("--duration", 0.5, "--processes", 1, "--out", tmp_path, "--seeds", 2)
    result = call("sweep", *options, "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(rows) == 2 * 2 * 3
    assert {row["rate_qps"] for row in rows} == {2000.0, 8000.0}
    assert all(row["seeds"] == 2 for row in rows)
    for name in ("plane.svg", "heatmap.svg"):
        assert "</svg>" in (tmp_path / name).read_text(encoding="utf-8")
    wrong = call("sweep", "--profile", PROFILE, "--rates", "a:b")
    assert (wrong.exit_code, "rates is 'a:b', allowed numbers" in wrong.stderr) == (2, True)


def test_devices_that_keep_a_subgraph_resident_serve_faster_and_report_it(tmp_path):
    table = json.loads(Path(PROFILE).read_text())
    table["residency"] = [
        {
            "id": "all",
            "bytes": 2**20,
            "load_ms": 1.0,
            "subnets": {
                s["id"]: {q: [0.5 * ms for ms in row] for q, row in s["latency_ms"].items()}
                for s in table["subnets"]
            },
        }
    ]
    (tmp_path / "resident.json").write_text(json.dumps(table))
    given = {"profile": str(tmp_path / "resident.json"), "policy": "fixed:largest"}
    without, beside = (
        json.loads(simulate("--json", "-", *options, **given).stdout)[0]
        for options in ((), ("--residency", "value", "--cache-mib", 1))
    )
    assert "residency" not in without
    assert beside["residency"]["loads"] == 1
    assert beside["residency"]["hit_rate"] > 0.8
    assert beside["latency_ms"]["p50"] < without["latency_ms"]["p50"]
    assert "--residency value --cache-mib 1" in beside["command"]
    for options, message in (
        (("--residency", "best"), "residency policy 'best' is unknown"),
        (("--residency", "value", "--cache-mib", 0.5), "has room for no subgraph"),
        (("--residency", "sushisched"), "has no encoding of"),
        (("--cache-mib", 1), "--cache-mib goes with --residency"),
        (("--residency", "value", "--stream"), "--stream goes without --residency"),
    ):
        refused = simulate(*options, **given)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_replicas_are_simulated_with_a_routing_that_the_report_says():
    spec = "gamma:rate=3000,cv2=8,duration=1"
    rules = ("one-queue", "round-robin", "sticky:4", "client:2")
    found = [
        json.loads(
            simulate(
                "--replicas", 2, "--routing", rule, "--json", "-", policy="drainfit", spec=spec
            ).stdout
        )[0]
        for rule in rules
    ]
    assert [(r["replicas"], r["routing"]) for r in found] == [(2, rule) for rule in rules]
    one = json.loads(simulate("--workers", 2, "--json", "-", policy="drainfit", spec=spec).stdout)
    assert "routing" not in one[0]
    assert one[0]["outcomes"] == found[0]["outcomes"]
    assert found[2]["utility"] < min(found[i]["utility"] for i in (0, 1, 3))
    shown = simulate("--replicas", 2, policy="drainfit", spec=spec).stdout
    assert "drainfit, round-robin" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--replicas", 2, "--routing", "nope"), "routing 'nope' is unknown, allowed one-queue"),
        (("--routing", "round-robin"), "--routing goes with --replicas N, 2 or more"),
        (("--replicas", 2, "--stream"), "--stream goes without --replicas"),
        (("--replicas", 2, "--events", "1@0.5"), "failures go with one queue only"),
    ],
)
def test_replicas_that_can_not_be_are_refused(options, message):
    result = simulate(*options)
    assert result.exit_code == 2
    assert message in result.stderr
