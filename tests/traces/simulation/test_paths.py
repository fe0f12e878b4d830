"""Which way a simulation goes: short in Python, long as machine code, with the same reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from slackfit.profile import LatencyProfile
from traces.cli import app
from traces.simulation import simulation
from traces.simulation.simulation import FEW_QUERIES, SimulationOptions, simulate_policies
from traces.spec.spec import parse_spec

PROFILE = LatencyProfile.load(Path("profiles/superserve_resnet_2080ti.json"))


def test_a_short_trace_waits_for_no_machine_code_and_the_reports_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = parse_spec("gamma:rate=2000,cv2=4,duration=2", seed=0)
    options = SimulationOptions(slo_s=0.036)
    told: list[str] = []

    def run() -> list[dict[str, object]]:
        return simulate_policies(
            trace, PROFILE, ["slackfit"], options, on_end=lambda _name, _s, why: told.append(why)
        )

    short = run()
    monkeypatch.setattr(simulation, "MANY_QUERIES", 0)
    assert run() == short
    assert told[0] == FEW_QUERIES
    assert told[1] in ("", "numba is not installed")


@pytest.mark.parametrize("events", [[], ["--events", "1.5x0@1"]])
def test_replicas_in_turn_go_as_machine_code_from_the_command(
    monkeypatch: pytest.MonkeyPatch, events: list[str]
) -> None:
    """No events were an empty list, which made devices that are not as profiled."""
    monkeypatch.setattr(simulation, "MANY_QUERIES", 0)
    words = [
        "simulate", "--profile", "profiles/superserve_resnet_2080ti.json", "--slo-ms", "36",
        "--trace", "gamma:rate=2000,cv2=4,duration=2", "--replicas", "2", "--routing",
        "round-robin", *events,
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    if events:
        assert "(in Python: devices that are not as profiled" in result.stderr
    else:
        assert "(compiled)" in result.stderr or "(in Python: numba is not" in result.stderr
