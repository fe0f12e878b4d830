"""Latencies by work: a file format, buckets, and profiles that stay whole when they are changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slackfit.profile import LatencyProfile, ProfileError


def with_work(**change: Any) -> dict[str, Any]:
    work = {
        "bounds": [2.0, 8.0],
        "buckets": [
            {"s": {"p50": [1.0, 2.0]}, "l": {"p50": [2.0, 4.0]}},
            {"s": {"p50": [1.0, 2.0]}, "l": {"p50": [8.0, 16.0]}},
            {"s": {"p50": [1.5, 3.0]}, "l": {"p50": [100.0, 200.0]}},
        ],
    } | change
    rows = [
        {"id": name, "accuracy": accuracy, "latency_ms": {"p50": [first, 2 * first]}}
        for name, accuracy, first in (("s", 0.7, 1.0), ("l", 0.8, 4.0))
    ]
    return {
        "format": 1,
        "name": "nodes",
        "device": "cpu",
        "dtype": "float32",
        "batch_sizes": [1, 2],
        "subnets": rows,
        "work": work,
    }


def test_work_is_kept_by_files_and_by_what_changes_a_profile(tmp_path: Path) -> None:
    profile = LatencyProfile.from_json(with_work())
    profile.save(tmp_path / "p.json")
    again = LatencyProfile.load(tmp_path / "p.json")
    assert again == profile
    assert [again.work.bucket(w) for w in (0.0, 2.0, 2.1, 8.0, 1e9)] == [0, 0, 1, 1, 2]  # type: ignore[union-attr]
    assert again.for_bucket(2).latency_s("l", 1) == pytest.approx(0.1)
    assert again.for_bucket(2) is again.for_bucket(2)
    assert again.latency_s("l", 1) == pytest.approx(0.004)
    assert again.scaled(2.0, 0.001).for_bucket(1).latency_s("l", 2) == pytest.approx(0.033)
    assert again.capped(1).for_bucket(1).latency_s("l", 1) == pytest.approx(0.008)
    assert again.select(["s"]).for_bucket(2).subnet_ids == ("s",)
    with pytest.raises(ProfileError, match="has 3 buckets of work, not 3"):
        again.for_bucket(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bounds": [8.0, 2.0]}, "bounds are .*must be increasing"),
        ({"bounds": [2.0]}, "3 buckets for 1 bounds"),
        ({"buckets": [{"s": {"p50": [1, 2]}}] * 3}, "bucket 0 lacks l"),
        ({"buckets": [{n: {"p50": [1]} for n in "sl"}] * 3}, "expected 2 positive times"),
        ({"buckets": [{n: {"p95": [1, 2]} for n in "sl"}] * 3}, "has no p50"),
        ({"bounds": None}, "malformed"),
    ],
)
def test_a_malformed_table_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        LatencyProfile.from_json(with_work(**change))
