"""The benchmark of graphs in a small form: every part gives its rows, trainings are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.bench.graphs import cases
from serve.bench.graphs.bench import PARTS, QUICK, GraphsBench
from serve.bench.graphs.distillation import TUNING_SEEDS, Distillation, StudentSetting
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.graphs.recipes import CHOSEN, TRIED
from serve.bench.graphs.training_cells import TrainingCells
from serve.bench.journal import Journal
from training.graphs.gcnii import accuracy_of
from training.graphs.student import WAYS

TINY = replace(
    QUICK,
    num_nodes=2000,
    num_edges=16_000,
    rounds=2,
    sized=60,
    repeats=1,
    simulated_s=0.05,
    live_s=0.05,
    teacher_seeds=1,
    subnet_seeds=1,
    student_seeds=2,
    steps=3,
)


def test_intervals_are_students() -> None:
    interval = mean_interval([1.0, 2.0, 4.0])
    assert interval.mean == pytest.approx(7 / 3)
    assert interval.high - interval.mean == pytest.approx(4.302653 * 1.527525 / 3**0.5, rel=1e-5)
    assert paired([1.0, 3.0], [0.5, 2.5]).deviation == 0.0
    assert mean_interval([1.0]).high == float("inf")


def test_speed_sizes_and_work_of_a_small_graph(tmp_path: Path) -> None:
    bench = GraphsBench(tmp_path, TINY)
    rows = {r["figure"]: r for r in bench.run(["speed", "sizes", "peers", "work"])}
    assert rows["graphs/node_us"]["value"] > 0
    assert rows["graphs/ladder"]["value"] > 1
    assert "graphs/speed/all-all/p99" in rows
    assert rows["graphs/size_error/edges/p95"]["value"] < 0.25
    assert rows["graphs/peers/ours"]["value"] > 0
    for policy in ("slackfit", "drainfit"):
        for driven in ("timed", "live"):
            figure = f"graphs/predicted_work/{policy}/{driven}"
            assert f"{figure}/blind_over_aware" in rows
            detail = rows[f"{figure}/aware/missed"]["detail"]
            assert sum(detail["subnets"].values()) <= detail["queries"]
    with pytest.raises(ValueError, match=f"part is 'x', allowed {', '.join(PARTS)}"):
        bench.run(["x"])


def test_trainings_are_kept_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERNET_DATA_DIR", raising=False)
    said: list[str] = []
    bench = GraphsBench(tmp_path, TINY, tell=said.append)
    rows = {r["figure"]: r for r in bench.run(["teacher"])}
    assert rows["graphs/teacher/cora/skipped"]["detail"]["reason"] == "SUPERNET_DATA_DIR is not set"
    small = replace(cases.node_case("heterophilous"), name="cora")
    small = replace(small, teacher=replace(small.teacher, layers=2, epochs=4))
    monkeypatch.setattr("serve.bench.graphs.accuracies.node_case", lambda name: small)
    monkeypatch.setattr("serve.bench.graphs.accuracies.missing", lambda name: "")
    rows = {r["figure"]: r for r in bench.run(["subnets"])}
    assert rows.pop("graphs/subnets/core_time")["detail"]["trainings"] == 3
    graphs = {"cora", "citeseer", "heterophilous"}
    assert {name.split("/")[2] for name in rows} == {*graphs, "mean", "mlp"}
    each = [rows[f"graphs/subnets/{name}/mean/shared_less_alone"]["value"] for name in graphs]
    overall = rows["graphs/subnets/mean/shared_less_alone"]
    assert overall["value"] == pytest.approx(sum(each) / 3, abs=1e-5)
    assert "graphs/subnets/cora/mean/shared_less_alone" in rows
    assert "graphs/subnets/cora/d0-w1-r1/shared_less_alone" in rows
    before = len(said)
    again = GraphsBench(tmp_path, TINY, tell=said.append).run(["subnets"])
    assert len(said) == before
    assert rows.items() <= {r["figure"]: r for r in again}.items()


def test_settings_are_compared_on_validation_nodes_and_kept_by_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cases.node_case("heterophilous")
    small = replace(small, teacher=replace(small.teacher, layers=2, epochs=4))
    monkeypatch.setattr("serve.bench.graphs.settings.node_case", lambda name: small)
    chosen = CHOSEN["heterophilous"]
    assert chosen in TRIED["heterophilous"]
    tried = ("bare", chosen)
    monkeypatch.setitem(TRIED, "heterophilous", tried)
    splits: list[str] = []

    def recorded(*given: Any) -> float:
        splits.append(given[2])
        return accuracy_of(*given)

    monkeypatch.setattr("serve.bench.graphs.shape_accuracies.accuracy_of", recorded)
    size = replace(TINY, graphs=("heterophilous",), settings_seeds=1)
    rows = {r["figure"]: r for r in GraphsBench(tmp_path, size).run(["settings"])}
    for name in tried:
        found = rows[f"graphs/settings/heterophilous/{name}"]
        assert len(found["detail"]["shapes"]) == 5
        if name != chosen:
            less = rows[f"graphs/settings/heterophilous/{name}_less_{chosen}"]
            mine = rows[f"graphs/settings/heterophilous/{chosen}"]["value"]
            assert less["value"] == pytest.approx(100 * (found["value"] - mine), abs=1e-3)
    assert set(splits) == {"validation"}
    longer = replace(size, steps=4)  # another recipe: nothing of the first is taken for it
    done = len(splits)
    GraphsBench(tmp_path, longer).run(["settings"])
    assert len(splits) == 2 * done
    GraphsBench(tmp_path, longer).run(["settings"])
    assert len(splits) == 2 * done
    with pytest.raises(ValueError, match="graph is 'x', allowed cora, citeseer, heterophilous"):
        GraphsBench(tmp_path, replace(size, graphs=("x",))).run(["subnets"])


def test_a_stopped_part_goes_on_and_tells_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    said: list[str] = []

    def measured(seconds: float, value: int) -> int:
        nonlocal now_s
        now_s += seconds
        return value

    def stopped() -> int:
        raise KeyboardInterrupt

    names = ["p/small/0", "p/small/1", "p/large/0", "p/large/1"]
    cells = TrainingCells(Journal(tmp_path / "j", {}), names, said.append)
    assert cells.once(names[0], lambda: measured(10, 7)) == 7
    assert cells.once(names[2], lambda: measured(30, 8)) == 8
    assert cells.left_s() == 40.0
    with pytest.raises(KeyboardInterrupt):
        cells.once(names[1], stopped)
    assert said[-1] == "p small 1 (2 of 4 done, about 40 s left)"
    on = TrainingCells(Journal(tmp_path / "j", {}), names, said.append)
    assert on.left_s() is None
    assert on.once(names[0], stopped) == 7
    assert on.once(names[1], lambda: measured(20, 9)) == 9
    assert said[-1] == "p small 1 (2 of 4 done)"
    assert on.left_s() == 20.0
    assert on.core_time("x")["detail"] == {"trainings": 3}


def test_every_way_is_paired_with_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = cases.node_case("heterophilous")
    monkeypatch.setattr("serve.bench.graphs.distillation.node_case", lambda name: small)
    monkeypatch.setattr("serve.bench.graphs.distillation.missing", lambda name: "")
    journal = Journal(tmp_path / "j", {})
    settings = (StudentSetting(0.0, 0.0), StudentSetting(0.9, 1.0))
    about: dict[str, Any] = {"tell": lambda text: None, "epochs": 4, "settings": settings}
    table = Distillation(journal, seeds=2, **about)
    rows = {r["figure"]: r for r in table.rows(["cora"])}
    for way in WAYS:
        assert 0 < rows[f"graphs/distillation/cora/{way}"]["value"] < 1
        if way != "logits":
            detail = rows[f"graphs/distillation/cora/{way}_less_logits"]["detail"]
            assert detail["seeds"] == 2
    assert "least_spread" in rows["graphs/distillation/cora/attention"]["detail"]
    for way in WAYS:
        cells = {
            setting: [
                journal.get(f"distillation/cora/{way}/{setting}/{seed}")["validation"]
                for seed in TUNING_SEEDS
            ]
            for setting in settings
        }
        best = max(settings, key=lambda setting: np.mean(cells[setting]))
        assert rows[f"graphs/distillation/cora/{way}"]["detail"]["setting"] == str(best)
        names = [f"distillation/cora/{way}/{best}/{seed}" for seed in range(2)]
        figures = [journal.get(name)["test"] for name in names]
        assert rows[f"graphs/distillation/cora/{way}"]["value"] == pytest.approx(
            np.mean(figures), abs=1e-5
        )
    for figure, count in (("core_time", 12), ("tuning_core_time", 36)):
        assert rows[f"graphs/distillation/cora/{figure}"]["detail"] == {"trainings": count}
    assert list(table.rows(["cora"])) == list(rows.values()), "nothing is trained again"
    assert json.dumps(list(rows.values()), allow_nan=False)
