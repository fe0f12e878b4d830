"""The resident-subgraph axis of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slackfit.profile import LatencyProfile, ProfileError

SMALL, LARGE = "s", "l"


def data() -> dict[str, Any]:
    return {
        "format": 1,
        "name": "two",
        "device": "cpu",
        "dtype": "float32",
        "batch_sizes": [1, 4],
        "subnets": [
            {"id": SMALL, "accuracy": 0.7, "macs": 1, "latency_ms": {"p50": [2.0, 6.0]}},
            {"id": LARGE, "accuracy": 0.8, "macs": 4, "latency_ms": {"p50": [8.0, 24.0]}},
        ],
        "residency": [
            {"id": "large", "bytes": 100, "subnets": {LARGE: {"p50": [4.0, 20.0]}}},
            {"id": "none", "bytes": 0, "subnets": {}},
        ],
    }


def test_beside_a_resident_subgraph_its_subnets_are_faster_and_the_others_as_they_were() -> None:
    profile = LatencyProfile.from_json(data())
    beside = profile.beside("large")
    assert beside.latency_s(LARGE, 1) == pytest.approx(4e-3)
    assert beside.latency_s(LARGE, 4) == pytest.approx(20e-3)
    assert beside.latency_s(SMALL, 4) == pytest.approx(6e-3)
    assert profile.latency_s(LARGE, 1) == pytest.approx(8e-3)
    assert profile.beside("none").table() == profile.table()
    assert profile.scaled(2.0).beside("large").latency_s(LARGE, 1) == pytest.approx(8e-3)
    assert beside.select([LARGE]).latency_s(LARGE, 1) == pytest.approx(4e-3)


def test_the_axis_survives_a_file(tmp_path: Path) -> None:
    profile = LatencyProfile.from_json(data())
    profile.save(tmp_path / "p.json")
    loaded = LatencyProfile.load(tmp_path / "p.json")
    assert loaded.residency == profile.residency
    assert loaded.to_json()["residency"] == data()["residency"]
    assert "residency" not in LatencyProfile.from_json(data() | {"residency": []}).to_json()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": "x", "bytes": -1, "subnets": {}}, "residency 'x': bytes is -1, allowed 0"),
        ({"id": "x", "bytes": 1, "subnets": {SMALL: {"p95": [1, 2]}}}, "'s' has no p50"),
        ({"id": "x", "bytes": 1, "subnets": {SMALL: {"p50": [1]}}}, "expected 2 positive times"),
        ({"id": "x", "bytes": 1}, "malformed"),
    ],
)
def test_a_misshapen_table_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        LatencyProfile.from_json(data() | {"residency": [table]})


def test_an_unknown_residency_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="residency 'small' is not in profile 'two'; it has lar"):
        LatencyProfile.from_json(data()).beside("small")
