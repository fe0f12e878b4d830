"""Which way a simulation goes: short in Python, long as machine code, with the same reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.profile import LatencyProfile
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
