"""`supernet profile --residency`: what it measures drives the simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.profile import LatencyProfile
from slackfit.residency import Candidate, Savings
from slackfit.simulation.device_residency import POLICIES, SimulatedResidency
from subnetact.cli import profile
from subnetact.cpu.graph_executor import GraphExecutor
from subnetact.profiling.resident_profile import _sets
from supernet.served_form import ServedForm

OPTIONS = {
    "packing": None, "cache_mib": None, "device": "cpu", "threads": 1, "dtype": None,
    "graph_mib": None,
}  # fmt: skip


def test_a_measured_profile_has_a_table_per_set_and_runs_in_the_simulator(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Times of so small a network are noise, so what sessions save is set here.
    monkeypatch.setattr(GraphExecutor, "measure_savings", _by_size)
    out = tmp_path / "profile.json"
    profile(checkpoint_folder, out, batch_sizes="1,2", repeats=2, residency=0.05, **OPTIONS)
    measured = LatencyProfile.load(out)
    assert measured.packing == "views"
    assert measured.residency
    lengths = {len(s.extra["encoding"]) for s in measured.subnets}
    lengths |= {len(table.encoding) for table in measured.residency}
    assert len(lengths) == 1
    for table in measured.residency:
        assert 0 < table.num_bytes <= 0.05 * 2**20
        assert table.load_s > 0
        assert set(table.latency_s) == set(measured.subnet_ids)
    for policy in POLICIES:
        kept = SimulatedResidency(measured, policy)
        for subnet_id in measured.subnet_ids * 20:
            assert kept.latency_s(0, subnet_id, 2) > 0
        assert kept.summary()["batches"] == 20 * len(measured.subnets)


def test_a_residency_too_small_for_any_subnet_is_refused(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.json"
    with pytest.raises(SystemExit):
        profile(checkpoint_folder, out, batch_sizes="1", repeats=1, residency=1e-5, **OPTIONS)
    assert "has room for no subnet that saves time" in capsys.readouterr().err.replace("\n", " ")
    assert not out.exists()


def test_equal_sets_are_named_once() -> None:
    savings = Savings(
        [
            Candidate("a", "x", 10, 0.0, {"s": 1.0, "l": 1.0}),
            Candidate("b", "y", 10, 0.0, {"l": 2.0}),
        ]
    )
    sets = _sets(savings, ("s", "l"), 20)
    assert sets == {"for s": frozenset({"a"}), "for l": frozenset({"a", "b"})}


def _by_size(executor: GraphExecutor) -> Savings:
    return Savings(
        Candidate(i, ServedForm.parse(i).subnet_id, size, 0.0, {i: 1e-9 * size})
        for i, size in executor.store.num_bytes.items()
    )
