"""Every long command tries its outputs before it works: an unwritable one ends it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve.cli import build_app

SPEC = "poisson:rate=10,duration=1"
TABLE = "profiles/superserve_resnet_2080ti.json"


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("the work began before its outputs were tried")


COMMANDS = {
    "simulate --json": (
        ["simulate", "--profile", TABLE, "--trace", SPEC, "--json", "{file}"],
        "traces.commands.simulate_request.SimulateRequest.run",
    ),
    "simulate --html": (
        ["simulate", "--profile", TABLE, "--trace", SPEC, "--html", "{file}"],
        "traces.commands.simulate_request.SimulateRequest.run",
    ),
    "simulate --chrome": (
        ["simulate", "--profile", TABLE, "--trace", SPEC, "--chrome", "{file}"],
        "traces.commands.simulate_request.SimulateRequest.run",
    ),
    "sweep --json": (
        ["sweep", "--profile", TABLE, "--rates", "10", "--json", "{file}"],
        "traces.simulation.cells.run_cells",
    ),
    "sweep --out": (
        ["sweep", "--profile", TABLE, "--rates", "10", "--out", "{file}"],
        "traces.simulation.cells.run_cells",
    ),
    "fit": (["trace", "fit", SPEC, "--out", "{file}"], "traces.spec.spec.parse_spec"),
    "info": (["trace", "info", SPEC, "--json", "{file}"], "traces.spec.spec.parse_spec"),
    "convert": (["trace", "convert", SPEC, "{file}"], "traces.spec.spec.parse_spec"),
    "plot": (["trace", "plot", SPEC, "--out", "{file}"], "traces.spec.spec.parse_spec"),
    "report": (["report", "nowhere", "--html", "{file}"], "traces.report.report.read_reports"),
    "replay": (
        ["replay", "--trace", SPEC, "--url", "http://127.0.0.1:1", "--out", "{file}"],
        "serve.commands.live_replay.LiveReplay.run",
    ),
    "profile": (
        ["profile", "--checkpoint", "nowhere", "--out", "{file}"],
        "subnetact.cli.load_checkpoint",
    ),
    "bench policies": (
        ["bench", "policies", "--json", "{file}"],
        "serve.bench.policies.bench.PoliciesBench.run",
    ),
    "bench actuation": (
        ["bench", "actuation", "--json", "{file}"],
        "serve.bench.actuation.bench.ActuationBench.run",
    ),
    "bench training": (
        ["bench", "training", "--json", "{file}"],
        "serve.bench.training.bench.TrainingBench.run",
    ),
    "bench serving --json": (
        ["bench", "serving", "--json", "{file}"],
        "serve.bench.serving.bench.ServingBench.__init__",
    ),
    "bench serving --out": (
        ["bench", "serving", "--out", "{file}"],
        "serve.bench.serving.bench.ServingBench.__init__",
    ),
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(arguments), arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unwritable_output_ends_a_command_before_its_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments, work = COMMANDS[name]
    monkeypatch.setattr(work, no_work)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out.svg"
    result = run(*[argument.format(file=out) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert "can't be written" in result.output
    assert str(tmp_path / "file") in result.output


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path):
    arguments = ["simulate", "--profile", TABLE, "--trace", SPEC, "--json", str(tmp_path)]
    result = run(*arguments)
    assert result.exit_code == 2
    assert "is a folder, allowed the name of a file" in result.output


def test_a_place_that_goes_while_a_command_works_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`simulate` had printed nothing and kept nothing when its file could not be written."""
    from traces.commands.simulate_request import SimulateRequest

    place = tmp_path / "place"
    reports = SimulateRequest.run

    def work(*args: object, **options: object) -> object:
        done = reports(*args, **options)  # type: ignore[arg-type]
        place.write_text("no folder any more")
        return done

    monkeypatch.setattr(SimulateRequest, "run", work)
    out = place / "out.json"
    arguments = ["simulate", "--profile", TABLE, "--trace", SPEC, "--slo-ms", "36"]
    result = run(*arguments, "--json", str(out))
    assert result.exit_code == 2
    assert "slackfit" in result.output, "the table"
    kept = Path(result.output.rpartition("kept as ")[2].strip())
    assert '"slo_attainment"' in kept.read_text()
