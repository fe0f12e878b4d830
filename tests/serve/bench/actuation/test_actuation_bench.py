"""Every part of `supernet bench actuation` on a tiny network: its rows are there and make sense."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from serve.bench.actuation.bench import PARTS, ActuationBench
from serve.bench.actuation.fresh_process import FreshLoad, FreshReport, run_fresh
from serve.bench.actuation.servable_memory import servable_memory_rows
from serve.bench.actuation.startup import form_ids
from serve.bench.command import bench_app
from serve.bench.rows import absent_row, row
from slackfit.profile import LatencyProfile, SubnetProfile
from supernet.checkpoint import load_checkpoint

FORMS = ("fp32", "int8", "views")
SETS = ("views", "sessions_fp32", "sessions_int8", "served_fp32", "served_int8")


@pytest.fixture(scope="module")
def bench(tiny_net):
    unsized = replace(tiny_net, sizes={})
    nets = SimpleNamespace(cifar=tiny_net, mobilenet=unsized, resnet=unsized)
    return ActuationBench(nets, thoroughness=0.0, servable=20, queries=50, tell=lambda line: None)


def values(bench, part):
    rows = bench.run([part])
    assert all(row["value"] > 0 and row["device"] and row["onnxruntime"] for row in rows)
    return {row["figure"].removeprefix("actuation/"): row["value"] for row in rows}


def test_an_unknown_part_is_named_with_those_that_there_are(bench):
    with pytest.raises(
        ValueError, match="unknown part speed; allowed graph, int8, .*busy, capacity"
    ):
        bench.run(["speed", "graph"])


@pytest.mark.parametrize("bench_name", ["actuation", "policies"])
def test_the_command_says_so_in_a_line(bench_name):
    result = CliRunner().invoke(bench_app, [bench_name, "--part", "speeed"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "speeed" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_absent_figure_is_listed_and_written(monkeypatch, tmp_path):
    rows = [row("actuation/had", 1.5, "ratio", "x"), absent_row("actuation/lacking", "ratio", "y")]
    monkeypatch.setattr(ActuationBench, "run", lambda self, names: rows)
    result = CliRunner().invoke(bench_app, ["actuation", "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    assert "absent ratio  actuation/lacking" in result.output
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


@pytest.mark.parametrize(("part", "precision"), [("graph", "fp32"), ("int8", "int8")])
def test_a_part_of_graphs_measures_one_precision(bench, part, precision):
    found = values(bench, part)
    assert f"tiny/max/b8/t1/ours_{precision}_over_best_static_{precision}" in found
    assert f"all/t1/worst/best_static_{precision}_over_itself" in found
    assert all(precision in figure for figure in found)


def test_switching_stands_beside_its_a_a(bench):
    found = values(bench, "switch")
    assert set(found) == {"tiny/switch_over_steady/b1", "tiny/steady_over_itself/b1"}


def test_residency_is_measured_in_both_precisions_on_both_streams(bench):
    found = values(bench, "residency")
    policies = ("unlimited", "value_per_byte", "nearest_average", "static_oracle")
    assert set(found) == {
        f"tiny/sgs/{precision}/{stream}/b1/t1/{policy}_over_no_cache"
        for precision in ("int8", "fp32")
        for stream in ("iid", "phases")
        for policy in policies
    }


@pytest.mark.slow
def test_busy_names_form_and_level(bench):
    found = values(bench, "busy")
    assert set(found) == {
        f"tiny/max/b8/t1/busy/{form}_beside_{percent}_percent_over_alone"
        for form in FORMS
        for percent in (30, 100)
    }


def test_capacity_is_simulated_with_what_the_profiler_measured(bench, monkeypatch):
    """The subnets' real entries; other times, as those that a busy machine gives are no ladder."""

    def measure(executor, checkpoint, *, repeats):
        assert repeats == 1
        return LatencyProfile(
            name=checkpoint.name,
            device="d",
            dtype=executor.dtype,
            batch_sizes=(1, 16),
            source="measured by the test",
            subnets=tuple(
                SubnetProfile(
                    subnet_id=subnet_id,
                    accuracy=0.5 + 0.1 * at - 0.001 * subnet_id.endswith("-i8"),
                    macs=1,
                    latency_s={"p50": (0.001 * (1 + at), 0.012 * (1 + at))},
                )
                for at, float_id in enumerate(checkpoint.subnet_ids)
                for subnet_id in (float_id, f"{float_id}-i8")
            ),
        )

    monkeypatch.setattr("serve.bench.actuation.bench.measure_profile", measure)
    rows = bench.run(["capacity"])
    assert {row["figure"] for row in rows} == {
        f"actuation/tiny/capacity/{policy}/{figure}"
        for policy in ("slackfit", "drainfit")
        for figure in (
            "int8_on_over_off",
            "attainment_at_capacity_of_off",
            "accuracy_gained_at_capacity_of_off",
        )
    }
    ratios = [row for row in rows if row["unit"] == "ratio"]
    assert all(row["detail"].endswith("measured by the test") for row in ratios)


@pytest.fixture
def loads(monkeypatch):
    """What processes were asked to load, instead of starting them."""
    asked: list[FreshLoad] = []

    def run(load: FreshLoad, cache_folder) -> FreshReport:
        asked.append(load)
        number = len(asked)
        return FreshReport(
            imported_s=1.0, loaded_s=1.0 + number, num_bytes=number * 10**6, file_bytes=0
        )

    for module in ("startup", "served_memory"):
        monkeypatch.setattr(f"serve.bench.actuation.{module}.run_fresh", run)
    return asked


def test_memory_is_that_of_a_process_for_each_set(bench, loads):
    found = values(bench, "memory")
    servable = found.pop("tiny/memory/20_servable_on_views_over_extracted")
    assert servable > 0
    megabytes = dict(zip(SETS, range(8, 13), strict=True))  # of the second net, of the same name
    assert {f.removeprefix("tiny/memory/4_subnets/"): value for f, value in found.items()} == {
        **megabytes,
        "sessions_int8_over_fp32": pytest.approx(10 / 9, abs=1e-6),
        "served_int8_over_fp32": pytest.approx(12 / 11, abs=1e-6),
    }
    held = [(load.holds, len(load.subnet_ids), load.runs) for load in loads[:6]]
    assert held[0] == ("graphs", 8, False), "the cache is warmed first, in both precisions"
    assert held[1:] == [
        ("views", 4, True), ("sessions", 4, True), ("sessions", 4, True),
        ("graphs", 4, True), ("graphs", 4, True),
    ]  # fmt: skip
    assert all(i.endswith("-i8") for load in (loads[3], loads[5]) for i in load.subnet_ids)


@pytest.mark.slow
def test_views_hold_more_than_the_weights_alone(tiny_net):
    """Twenty subnets of views and statistics beside one set of weights."""
    one, many = (servable_memory_rows(tiny_net, servable=n, tell=print)[0] for n in (1, 20))
    extracted = int(many["detail"].split()[-2])
    weights = sum(tensor.nbytes for tensor in tiny_net.state.values())
    assert weights < one["value"] * extracted < many["value"] * extracted


def test_starting_is_timed_with_an_empty_and_with_a_full_cache(bench, loads):
    found = values(bench, "startup")
    assert set(found) == {
        f"tiny/startup/14_subnets/{precision}/{start}_start"
        for precision in ("fp32", "both")
        for start in ("first", "second")
    }
    assert [len(load.subnet_ids) for load in loads[:4]] == [14, 14, 28, 28]


@pytest.mark.slow
def test_a_fresh_process_loads_faster_what_another_compiled(tiny_net, tmp_path):
    folder = tiny_net.saved(tiny_net.archs(2), tmp_path)
    ids = form_ids(load_checkpoint(folder), "both")
    load = FreshLoad(checkpoint=str(folder), subnet_ids=ids)
    first, second = (run_fresh(load, tmp_path / "cache") for _ in range(2))
    assert len(list((tmp_path / "cache" / "graphs").glob("*.onnx"))) == len(ids)
    taken_s = [report.loaded_s - report.imported_s for report in (first, second)]
    assert 0 < taken_s[1] < taken_s[0]
    alone = run_fresh(replace(load, holds="sessions", runs=True), tmp_path / "cache")
    assert 0 <= alone.file_bytes < alone.num_bytes < 200e6


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no such file; is this a checkpoint folder"):
        run_fresh(FreshLoad(checkpoint=str(tmp_path), subnet_ids=[]), tmp_path)
    with pytest.raises(ValueError, match="holds is 'all', allowed views, graphs, sessions"):
        FreshLoad(checkpoint="", subnet_ids=[], holds="all")


def test_every_part_has_a_method(bench):
    assert all(callable(getattr(bench, f"_{part}")) for part in PARTS)
