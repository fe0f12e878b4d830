"""Profiles: validation with full messages, round trip, interpolation, the published tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from slackfit.profile import LatencyProfile, ProfileError
from slackfit.resident_table import ResidentTable


def data(**changes) -> dict:
    subnets = [
        {"id": "b", "accuracy": 0.8, "macs": 20, "latency_ms": {"p50": [2.0, 6.0]}},
        {"id": "a", "accuracy": 0.6, "macs": 10, "latency_ms": {"p50": [1.0, 3.0]}},
    ]
    base = {"format": 1, "name": "duo", "device": "cpu", "dtype": "float32"}
    return {**base, "batch_sizes": [1, 3], "subnets": subnets, **changes}


def subnet(**changes) -> dict:
    base = {"id": "a", "accuracy": 0.6, "macs": 10, "latency_ms": {"p50": [1.0, 3.0]}}
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "p.json: format is 2, allowed 1"),
        ({"batch_sizes": []}, "p.json: batch_sizes is [], allowed whole numbers from 1 up"),
        ({"batch_sizes": [3, 1]}, "p.json: batch_sizes is [3, 1], it must be strictly increasing"),
        ({"subnets": []}, "p.json: subnets is empty: a profile needs at least one subnet"),
        ({"subnets": [subnet(), subnet()]}, "p.json: subnets listed twice: a"),
        (
            {"subnets": [subnet(accuracy=61.0)]},
            "p.json: subnet 'a': accuracy is 61.0, allowed a fraction 0 to 1",
        ),
        (
            {"subnets": [subnet(latency_ms={"p95": [1.0, 2.0]})]},
            "p.json: subnet 'a': latency_ms has no p50",
        ),
        (
            {"subnets": [subnet(latency_ms={"p50": [1.0]})]},
            "p.json: subnet 'a': latency_ms.p50 has 1 values for 2 batch sizes",
        ),
        (
            {"subnets": [subnet(latency_ms={"p50": [1.0, 0.0]})]},
            "p.json: subnet 'a': latency_ms.p50 must be positive and finite",
        ),
        ({"subnets": [{"id": "a"}]}, "p.json: subnet 'a': missing accuracy, latency_ms"),
    ],
)
def test_a_malformed_profile_names_the_field_at_fault(changes, message):
    with pytest.raises(ProfileError, match=f"^{re.escape(message)}$"):
        LatencyProfile.from_json(data(**changes), "p.json")


def test_missing_fields_and_other_types_are_named():
    with pytest.raises(ProfileError, match=r"^p: missing device, subnets$"):
        LatencyProfile.from_json({"format": 1, "name": "x", "dtype": "", "batch_sizes": [1]}, "p")
    with pytest.raises(ProfileError, match=r"^profile: expected a JSON object, got list$"):
        LatencyProfile.from_json([])


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ProfileError, match=f"^{re.escape(str(path))}: not JSON"):
        LatencyProfile.load(path)


def test_unknown_keys_survive_a_round_trip(tmp_path):
    written = data(threads=4, colour="red", rooms=[{"id": "r"}])
    written["subnets"][0]["note"] = {"why": "test"}
    written["subnets"][0]["latency_ms"]["p99"] = [2.5, 6.123456]
    path = tmp_path / "deep" / "profile.json"
    profile = LatencyProfile.from_json(written)
    profile.save(path)
    read = json.loads(path.read_text())
    assert (read["colour"], read["rooms"], read["threads"]) == ("red", [{"id": "r"}], 4)
    assert read["subnets"][1]["note"] == {"why": "test"}
    assert read["subnets"][1]["latency_ms"]["p99"] == [2.5, 6.123456]
    assert LatencyProfile.load(path) == profile
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_subnets_are_in_order_of_accuracy():
    assert LatencyProfile.from_json(data()).subnet_ids == ("a", "b")


def test_latency_between_profiled_batch_sizes_is_interpolated():
    profile = LatencyProfile.from_json(data(batch_sizes=[2, 4]))
    latencies = [profile.latency_s("a", size) for size in (1, 2, 3, 4)]
    assert latencies == pytest.approx([1e-3, 1e-3, 2e-3, 3e-3])
    with pytest.raises(ProfileError, match=r"^batch size 5 is not profiled in 'duo'; allowed 1"):
        profile.latency_s("a", 5)
    with pytest.raises(ProfileError, match=r"^subnet 'c' is not in profile 'duo'; it has a, b$"):
        profile.latency_s("c", 1)
    for ask in (profile.table, profile.pareto):
        with pytest.raises(ProfileError, match="^subnet 'a' of profile 'duo' has no p99; it has p"):
            ask("p99")


def test_the_pareto_front_is_that_of_the_definition(rng):
    """Few values each, so that there are equals; every pair is compared here."""

    def beats(a, b) -> bool:
        rows = list(zip(a.latency_s["p50"], b.latency_s["p50"], strict=True))
        if a is b or a.accuracy < b.accuracy or any(x > y for x, y in rows):
            return False
        better = a.accuracy > b.accuracy or any(x < y for x, y in rows)
        return better or a.subnet_id < b.subnet_id

    for _ in range(50):
        rows = [
            subnet(
                id=f"s{n}",
                accuracy=float(rng.integers(1, 4)) / 4,
                latency_ms={"p50": rng.integers(1, 4, 2).tolist()},
            )
            for n in range(12)
        ]
        profile = LatencyProfile.from_json(data(subnets=rows))
        kept = [s for s in profile.subnets if not any(beats(o, s) for o in profile.subnets)]
        assert profile.pareto().subnets == tuple(kept)


def test_a_padded_batch_takes_as_long_as_the_next_size(tmp_path):
    padded = LatencyProfile.from_json(data(batch_sizes=[2, 4], padded=True))
    latencies = [padded.latency_s("a", size) for size in (1, 2, 3, 4)]
    assert latencies == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3])
    assert padded.capped(3).table()["a"] == pytest.approx([0.0, 1e-3, 1e-3, 3e-3])
    assert padded.capped(3).padded
    padded.save(tmp_path / "profile.json")
    assert LatencyProfile.load(tmp_path / "profile.json") == padded
    assert "padded" not in LatencyProfile.from_json(data()).to_json()


def test_a_beaten_subnet_is_not_on_the_pareto_front():
    worse = subnet(id="c", accuracy=0.7, latency_ms={"p50": [2.0, 6.5]})
    profile = LatencyProfile.from_json(data(subnets=[*data()["subnets"], worse]))
    assert profile.pareto().subnet_ids == ("a", "b")


def test_a_profile_of_something_else_is_refused():
    profile = LatencyProfile.from_json(data(checkpoint="c1", threads=2))
    fits = {"checkpoint": "c1", "device": "cpu", "threads": 2, "subnet_ids": ["a", "b"]}
    profile.check_serves(**fits)
    for change, message in (
        ({"checkpoint": "c2"}, "profile 'duo' was measured on checkpoint c1, but"),
        ({"device": "gpu"}, "profile 'duo' was measured on 'cpu', this device is 'gpu'"),
        ({"threads": 1}, "profile 'duo' was measured with 2 threads, the engine runs 1"),
        ({"subnet_ids": ["a"]}, "profile 'duo' names subnets that the checkpoint does not serve"),
    ):
        with pytest.raises(ProfileError, match=f"^{re.escape(message)}"):
            profile.check_serves(**{**fits, **change})


# SuperServe, NSDI'25, Figures 6b and 12b: ms per batch size, then GFLOPs.
RESNET = """
1       1.41  1.83  2.04  2.45  3.33  4.64
2       1.76  2.27  2.52  2.99  4.26  6.11
4       2.53  3.15  3.53  4.29  6.54  10.4
8       4.09  5.08  5.88  6.64  11.7  19.3
16      7.35  9.38  10.6  11.5  18.6  30.7
gflops  0.9   2.05  3.6   3.95  5.05  7.55
id      73.82 76.69 77.64 78.25 79.44 80.16
"""
# Figures 6a and 12a.
DYNABERT = """
1       4.95  7.33  9.72  20.1  22.2  26.8
2       8.36  12.4  16.4  36.5  39.4  48.9
4       15.1  22.3  29.7  67.4  74.2  87.7
8       28.7  43.7  56.5  118   131   168
16      54.7  84    102   228   247   327
gflops  11.23 22.84 34.45 67.12 68.14 89.49
id      82.2  83.5  84.1  84.8  85.1  85.2
"""


@pytest.mark.parametrize(("family", "printed"), [("resnet", RESNET), ("dynabert", DYNABERT)])
def test_the_published_profiles_hold_the_printed_numbers(request, family, printed):
    profile = request.getfixturevalue(family)
    rows = {line.split()[0]: line.split()[1:] for line in printed.strip().splitlines()}
    assert profile.name == f"superserve_{family}_2080ti"
    assert profile.batch_sizes == (1, 2, 4, 8, 16)
    assert profile.subnet_ids == tuple(f"{family}-{accuracy}" for accuracy in rows["id"])
    assert "NSDI 2025" in profile.source
    for at, row in enumerate(profile.subnets):
        assert re.fullmatch(r"[a-z0-9._-]+", row.subnet_id)
        assert row.accuracy == pytest.approx(float(rows["id"][at]) / 100, abs=1e-12)
        assert row.macs == pytest.approx(float(rows["gflops"][at]) * 1e9, abs=1)
        for size in profile.batch_sizes:
            printed_s = float(rows[str(size)][at]) * 1e-3
            assert profile.latency_s(row.subnet_id, size) == pytest.approx(printed_s, abs=1e-12)


def test_a_capped_profile_keeps_its_latencies_and_residencies(resnet: LatencyProfile) -> None:
    first = resnet.subnet_ids[0]
    rows = {q: tuple(t / 2 for t in row) for q, row in resnet.subnet(first).latency_s.items()}
    table = ResidentTable(residency_id="half", num_bytes=1, latency_s={first: rows})
    profile = replace(resnet, residency=(table,))
    capped = profile.capped(6)
    assert capped.batch_sizes == (1, 2, 4, 6)
    for size in range(1, 7):
        for subnet_id in profile.subnet_ids:
            assert capped.latency_s(subnet_id, size) == profile.latency_s(subnet_id, size)
        beside = capped.beside("half").latency_s(first, size)
        assert beside == pytest.approx(resnet.latency_s(first, size) / 2)
    assert profile.capped(16) is profile
    for size in (0, 17):
        with pytest.raises(ProfileError, match=f"batch size {size}"):
            profile.capped(size)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, resnet) -> None:
    (tmp_path / "profile.json").mkdir()
    with pytest.raises(OSError, match=r"profile\.json"):
        resnet.save(tmp_path / "profile.json")
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]
