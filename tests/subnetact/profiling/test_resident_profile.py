"""`supernet profile --residency`: what it measures drives the simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.profile import LatencyProfile
from slackfit.residency import Candidate, Savings
from slackfit.simulation.device_residency import POLICIES, SimulatedResidency
from subnetact.cache import SliceKey
from subnetact.cli import profile
from subnetact.cpu.packed_supernet import PackedSlice, PackedSupernet
from subnetact.cpu.packing import is_available
from subnetact.profiling.resident_profile import _subgraphs

needs_packing = pytest.mark.skipif(not is_available(), reason="this torch packs no oneDNN weights")


@needs_packing
def test_a_measured_profile_has_a_table_per_subgraph_and_runs_in_the_simulator(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Times of so small a network are noise, so what slices save is set here.
    monkeypatch.setattr("subnetact.profiling.resident_profile.measure_savings", _by_size)
    out = tmp_path / "profile.json"
    profile(
        checkpoint_folder, out, batch_sizes="1,2", repeats=2, residency=0.02, packing=None,
        cache_mib=None, device="cpu", threads=1, dtype=None, graph_mib=None,
    )  # fmt: skip
    measured = LatencyProfile.load(out)
    assert measured.packing == "views"
    assert measured.residency
    lengths = {len(s.extra["encoding"]) for s in measured.subnets}
    lengths |= {len(table.encoding) for table in measured.residency}
    assert len(lengths) == 1
    for table in measured.residency:
        assert 0 < table.num_bytes <= 0.02 * 2**20
        assert table.load_s > 0
        assert set(table.latency_s) == set(measured.subnet_ids)
    for policy in POLICIES:
        kept = SimulatedResidency(measured, policy)
        for subnet_id in measured.subnet_ids * 20:
            assert kept.latency_s(0, subnet_id, 2) > 0
        assert kept.summary()["batches"] == 20 * len(measured.subnets)


@needs_packing
def test_a_residency_too_small_for_any_slice_is_refused(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        profile(
            checkpoint_folder, tmp_path / "p.json", batch_sizes="1", repeats=1, residency=1e-5,
            packing=None, cache_mib=None, device="cpu", threads=1, dtype=None, graph_mib=None,
        )  # fmt: skip
    assert "has room for no slice that saves time" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "p.json").exists()


def test_equal_subgraphs_are_named_once() -> None:
    savings = Savings(
        [
            Candidate("a", "x", 10, 0.0, {"s": 1.0, "l": 1.0}),
            Candidate("b", "y", 10, 0.0, {"l": 2.0}),
        ]
    )
    subgraphs = _subgraphs(savings, ("s", "l"), 20)
    assert subgraphs == {"for s": frozenset({"a"}), "for l": frozenset({"a", "b"})}


def _by_size(
    net: PackedSupernet, subnet_ids: tuple[str, ...]
) -> tuple[Savings, dict[SliceKey, PackedSlice]]:
    slices = {f.key: f for i in subnet_ids for f in net.slices(i) if f.key.owner}
    return Savings(
        Candidate(key, key.layer, f.num_bytes, 0.0, {f.subnet_id: 1e-9 * f.num_bytes})
        for key, f in slices.items()
    ), slices
