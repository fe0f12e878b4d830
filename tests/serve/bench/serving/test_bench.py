"""The serving benchmark: what it keeps, how it judges, what it refuses. No figure is timed here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.bench.journal import Journal
from serve.bench.serving.load import Load, LoadScore, pooled
from serve.bench.serving.overload import forward_ratios, offered, recovery_s
from serve.bench.serving.peers import (
    LoadPoint,
    PeersBench,
    PeersScale,
    bar_rows,
    dominates,
    grid,
    is_disturbed,
)
from serve.bench.serving.setting import Setting, choose_slo_s, find_checkpoint
from serve.config import ServeConfigError
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Outcome, Status
from traces.open_loop.answers import Answer
from traces.open_loop.target import ReplayReply


def score(on_time: int, accuracy: float, total: int = 1000) -> LoadScore:
    share = on_time / total
    return LoadScore(
        on_time, total, accuracy, None, 0.01, 0.02, 0.001, True, 0.2, 0.5,
        (max(share - 0.01, 0.0), min(share + 0.01, 1.0)),
        {"on_time": on_time, "late": total - on_time},
    )  # fmt: skip


@pytest.fixture
def setting(profile: LatencyProfile, tmp_path: Path) -> Setting:
    load = Load(model="tiny", slo_s=0.1, data=None)
    return Setting(tmp_path, tmp_path / "profile.json", profile, load, 1, (1, 2, 2))


# --- the journal ---------------------------------------------------------------------------------


def test_a_cell_is_measured_once_and_survives_the_process(tmp_path: Path) -> None:
    path, measured = tmp_path / "part.jsonl", []
    for _ in range(2):
        journal = Journal(path, {"slo_s": 0.1})
        cell = journal.once("run", lambda: measured.append(1) or (1, [2.0, None]))
        assert cell == [1, [2.0, None]]
    assert measured == [1]
    assert len(Journal(path, {"slo_s": 0.1})) == 1


def test_other_settings_start_over(tmp_path: Path) -> None:
    Journal(tmp_path / "part.jsonl", {"slo_s": 0.1}).once("run", lambda: 1)
    journal = Journal(tmp_path / "part.jsonl", {"slo_s": 0.2})
    assert "run" not in journal
    assert journal.once("run", lambda: 2) == 2


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    journal = Journal(path, {})
    journal.once("first", lambda: 1)
    journal.once("second", lambda: 2)
    path.write_text(path.read_text()[:-5])
    again = Journal(path, {})
    assert "first" in again
    assert "second" not in again
    again.once("second", lambda: 3)
    assert Journal(path, {}).get("second") == 3


def test_a_cell_that_is_wrong_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    journal = Journal(path, {"slo_s": 0.1})
    journal.once("good", lambda: 1)
    journal.once("bad", lambda: -1)
    assert journal.forget(lambda name, cell: cell < 0) == ["bad"]
    again = Journal(path, {"slo_s": 0.1})
    assert "bad" not in again
    assert again.get("good") == 1


# --- who is better -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "other", "is_better"),
    [
        (score(990, 0.95), score(990, 0.90), True),  # as many on time, more accurate
        (score(989, 0.95), score(990, 0.90), False),  # more accurate, one more miss
        (score(990, 0.90), score(980, 0.90), True),  # half of the misses
        (score(990, 0.90), score(981, 0.90), False),  # not quite half
        (score(990, 0.89), score(900, 0.90), False),  # fewer misses, less accurate
        (score(1000, 0.90), score(1000, 0.90), False),  # the same
    ],
)
def test_domination(mine: LoadScore, other: LoadScore, is_better: bool) -> None:
    assert dominates(mine, other) is is_better


def test_a_run_on_a_full_machine_or_of_a_slow_client_is_disturbed() -> None:
    run = score(990, 0.9)
    assert not is_disturbed(run)
    assert is_disturbed(run._replace(busy=0.99))
    assert is_disturbed(run._replace(is_valid=False))
    assert not is_disturbed(run._replace(busy=None))


def test_the_best_fixed_one_is_the_one_with_the_highest_attainment() -> None:
    scores = {
        "ours": score(995, 0.95),
        "fixed_smallest": score(990, 0.7),
        "fixed_middle": score(993, 0.8),
        "fixed_largest": score(100, 0.99),
    }
    rows = {row["figure"].rsplit("/", 1)[1]: row for row in bar_rows(0.9, "ours", scores)}
    assert rows["ours_dominates_best"]["value"] == 1
    assert "is middle" in rows["ours_dominates_best"]["detail"]
    assert rows["ours_dominates_largest"]["value"] == 0, "it is more accurate when on time"
    assert bar_rows(0.9, "ours", {"ours": scores["ours"]}) == []


def test_pooled_runs_weigh_by_answers() -> None:
    whole = pooled([score(900, 0.9), score(100, 0.8)])
    assert whole.attainment == 0.5
    assert whole.accuracy == pytest.approx(0.89)
    assert whole.outcomes == {"on_time": 1000, "late": 1000}


# --- the part against the peer -------------------------------------------------------------------


def filled(setting: Setting, folder: Path) -> PeersBench:
    """Return a bench whose journal holds a whole run with one load and one round."""
    journal = Journal(folder / "peers.jsonl", {})
    journal.once("peers/capacity_qps", lambda: 500.0)
    journal.once("peers/proxy_qps", lambda: 200.0)
    scale = PeersScale(loads=(0.9,), num_rounds=1)
    attainments = {"smallest": 0.99, "middle": 0.9, "largest": 0.2}
    for size in attainments:
        for place, point in enumerate(grid(setting.load.slo_s, 4)):
            journal.once(f"peers/tuning/0.9/{size}/{point}", lambda p=place: 0.5 + 0.1 * (p == 2))
    ours = {"ours": 0.995, "ours_via_proxy": 0.3}
    for name, share in {**{f"fixed_{k}": v for k, v in attainments.items()}, **ours}.items():
        accuracy = 0.85 if name == "ours" else 0.7
        journal.once(f"peers/run/0.9/0/{name}", lambda s=share, a=accuracy: score(int(1000 * s), a))
    return PeersBench(setting, journal, scale=scale, tell=lambda text: None)


def test_rows_say_how_the_peer_was_tuned_and_on_which_trace(setting: Setting, tmp_path: Path):
    bench = filled(setting, tmp_path)
    rows = {row["figure"]: row for row in bench.rows()}
    assert rows["serving/peers/load90/ours/attainment"]["value"] == 0.995
    detail = rows["serving/peers/load90/fixed_middle/attainment"]["detail"]
    assert str(grid(0.1, 4)[2]) in detail
    assert "bursty:base=90.0,variant=360.0,cv2=8,duration=9" in detail
    assert rows["serving/peers/load90/ours_dominates_best"]["value"] == 1.0
    assert json.dumps(bench.rows(), allow_nan=False)
    (panel,) = bench.panels().values()
    assert panel["ours, slackfit"].attainment == 0.995
    assert sorted(panel) == ["fixed largest", "fixed middle", "fixed smallest", "ours, slackfit"]


def test_rows_of_an_interrupted_run_hold_what_is_there(setting: Setting, tmp_path: Path) -> None:
    bench = PeersBench(
        setting, Journal(tmp_path / "peers.jsonl", {}), scale=PeersScale(), tell=lambda text: None
    )
    assert bench.rows() == []
    assert bench.panels() == {}


def test_the_grid_reaches_the_largest_batch_with_and_without_a_timeout() -> None:
    points = grid(0.04, 16)
    assert {p.max_batch_size for p in points} == {4, 8, 16}
    assert LoadPoint(16, 0.001, None) in points
    assert LoadPoint(16, 0.001, 0.04) in points


# --- overload ------------------------------------------------------------------------------------


def outcome(arrival_s: float, status: Status) -> Outcome:
    return Outcome(0, status, "", arrival_s, arrival_s + 0.1, None, arrival_s, None, 0.0, 0)


def test_recovery_is_until_a_second_without_a_miss() -> None:
    times = np.arange(56) / 4  # 0.25 s apart: exact
    bad = {9.75, 10.0, 10.25}
    outcomes = [outcome(float(t), "late" if t in bad else "on_time") for t in times]
    assert recovery_s(outcomes, 10.0) == pytest.approx(0.3)  # the first step after 10.25
    assert recovery_s([o for o in outcomes if o.arrival_s < 9.75], 5.0) == 0.0
    assert recovery_s([o._replace(status="dropped") for o in outcomes], 10.0) is None


def test_overload_is_of_the_device_and_not_of_the_cores():
    rows = {"small": (0.001,), "middle": (0.004,), "large": (0.01,)}  # 1,000, 250, 100 queries/s
    subnets = tuple(
        SubnetProfile(subnet_id=name, accuracy=0.9 + i / 100, macs=0, latency_s={"p50": row})
        for i, (name, row) in enumerate(rows.items())
    )
    profile = LatencyProfile(
        name="x", device="x", dtype="float32", batch_sizes=(1,), subnets=subnets
    )
    assert [len(offered(profile, cores).subnets) for cores in (1, 2, 6, 7)] == [1, 2, 2, 3]
    assert offered(profile.scaled(0.1), 1).subnet_ids == ("large",), "one at least"


def test_forward_time_counts_each_batch_once(profile: LatencyProfile) -> None:
    def answer(batch_id: str, size: int, execution_s: float) -> Answer:
        reply = ReplayReply(
            status="ok", subnet_id="small", batch_size=size, execution_s=execution_s,
            batch_id=batch_id,
        )  # fmt: skip
        return Answer(0, 0.0, 0.0, 0.0, reply, None)

    answers = [answer("a", 2, 0.003), answer("a", 2, 0.003), answer("b", 1, 0.001)]
    assert forward_ratios(answers, profile) == pytest.approx([2.0, 1.0])


# --- the setting ---------------------------------------------------------------------------------


def test_the_slo_is_several_times_the_largest_subnets_batch_1(profile: LatencyProfile) -> None:
    assert choose_slo_s(profile) == pytest.approx(0.04)  # 10 x 4 ms
    assert choose_slo_s(profile.scaled(1.01)) == pytest.approx(0.045)


def test_the_three_subnets_are_told_by_accuracy(setting: Setting) -> None:
    assert setting.sized() == {"smallest": "small", "middle": "middle", "largest": "large"}
    assert setting.timed_config(subnets="middle,large").device == "timed"


def test_without_a_checkpoint_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.bench.command import bench_app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServeConfigError, match="run `make demo` first, or give --checkpoint"):
        find_checkpoint(None)
    result = CliRunner().invoke(bench_app, ["serving", "--checkpoint", "nowhere"])
    assert result.exit_code == 2
    assert "no trained supernet there" in result.output
