"""The soak and the overload of the serving benchmark, on a server that is only pretended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.bench.journal import Journal
from serve.bench.serving import overload, soak
from serve.bench.serving.load import Load, LoadScore
from serve.bench.serving.overload import MODES, OverloadBench, OverloadScale
from serve.bench.serving.setting import Setting
from serve.bench.serving.soak import SoakBench
from slackfit.profile import LatencyProfile
from traces.open_loop.result import make_result
from traces.spec.spec import parse_spec

CAPACITY_QPS = 600.0
MIB = 2**20


class PretendedServer:
    """Grows by 1 MiB whenever it is asked."""

    url = "http://nowhere"

    def __init__(self) -> None:
        self._resident = 99 * MIB

    def resident_bytes(self) -> int:
        self._resident += MIB
        return self._resident

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[int]]:
        yield [100 * MIB, 103 * MIB, 102 * MIB]


def pretended_replay(load: Load, url: str, spec: str, seed: int, **_: Any) -> tuple[LoadScore, Any]:
    """Answer on time what the capacity allows, the rest too late."""
    trace = parse_spec(spec, seed=seed)
    rate_qps = len(trace) / trace.duration_s
    share = min(1.0, CAPACITY_QPS / rate_qps)
    on_time = round(share * len(trace))
    late = len(trace) - on_time
    counts = {"on_time": on_time, "late": late}
    score = LoadScore(
        on_time, len(trace), 0.9, None, 0.01, 0.02, 0.001, True, 0.2, 0.5, (share, share), counts
    )
    return score, make_result(
        trace, [], slo_s=trace.arrival_s, warmup_s=0.0, ended_s=None, max_lag_s=1.0
    )


@pytest.fixture
def setting(profile: LatencyProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    @contextlib.contextmanager
    def started(_: object) -> Iterator[PretendedServer]:
        yield PretendedServer()

    for module in (soak, overload):
        monkeypatch.setattr(module, "server_process", started)
    monkeypatch.setattr(Load, "replay", pretended_replay)
    load = Load(model="tiny", slo_s=0.1, data=None)
    return Setting(tmp_path, tmp_path / "profile.json", profile, load, 1, (1, 2, 2))


def test_a_soak_says_what_memory_and_the_tail_did(setting: Setting, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "soak.jsonl", {})
    bench = SoakBench(setting, journal, duration_s=20.0, tell=lambda text: None)
    assert bench.rows() == []
    bench.run()
    rows = {row["figure"].rsplit("/", 1)[1]: row["value"] for row in bench.rows()}
    assert rows["memory_growth"] == pytest.approx(0.03)  # 4 stretches of 5 s, from 100 MiB on
    assert rows["p99_drift"] == 0.0
    assert rows["attainment"] == 1.0
    assert 0.8 * CAPACITY_QPS / 1.25 < rows["rate"] <= 0.8 * CAPACITY_QPS * 1.1
    cells = len(journal)
    bench.run()
    assert len(journal) == cells, "a finished soak is not run again"


def test_overload_is_twice_the_best_goodput_of_the_search(setting: Setting, tmp_path: Path):
    bench = OverloadBench(
        setting,
        Journal(tmp_path / "overload.jsonl", {}),
        scale=OverloadScale(2.0, 3.0, 2.0),
        tell=lambda text: None,
    )
    bench.run()
    rows = {row["figure"]: row for row in bench.rows()}
    assert len(rows) == 6 * len(MODES)
    row = rows["serving/overload/timed/memory_growth"]
    assert row["value"] == 3
    assert "TIMED" in rows["serving/overload/timed/goodput_at_2x"]["detail"]
    assert "TIMED" not in rows["serving/overload/cpu/goodput_at_2x"]["detail"]
