"""`supernet bench training` at the smallest size: what is missing is run, what is there is kept."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

import serve.bench.training.bench
from serve.bench.training.bench import TrainingBench, _ElapsedTime
from serve.bench.training.cases import CASES, base_config, points_of, same_work, work
from supernet import cost, define_supernet


def bench(out: Path, **options) -> TrainingBench:
    base = base_config(None, epochs=2, images=256, threads=1)
    base = replace(base, data=replace(base.data, batch_size=64))
    return TrainingBench(out, base, num_seeds=2, **{"cases": ("deps", "single"), **options})


def test_runs_are_kept_resumed_and_compared(tmp_path: Path) -> None:
    steps = iter(range(12))  # two runs of eight steps: stops in the middle of the second
    rows = bench(tmp_path).run(should_stop=lambda: next(steps, None) is None)
    assert {row["figure"].split("/")[1] for row in rows} == {"deps"}
    told: list[str] = []
    rows = bench(tmp_path, tell=told.append).run()
    assert told[0].startswith("single, seed 0: step 2 of 8")
    by_figure = {row["figure"]: row for row in rows}
    for case in ("deps", "single"):
        points = [by_figure[f"training/{case}/p{i}/accuracy"] for i in range(1, 6)]
        assert [p["detail"]["macs"] for p in points] == sorted(p["detail"]["macs"] for p in points)
        assert all(len(p["detail"]["seeds"]) == 2 for p in points)
        mean = by_figure[f"training/{case}/mean/accuracy"]["value"]
        assert mean == pytest.approx(sum(p["value"] for p in points) / 5)
        assert by_figure[f"training/{case}/wall"]["value"] > 0
    gain = by_figure["training/single/mean/over_deps"]
    assert gain["value"] == pytest.approx(
        by_figure["training/single/mean/accuracy"]["value"]
        - by_figure["training/deps/mean/accuracy"]["value"]
    )
    assert gain["detail"]["counts"] == (abs(gain["value"]) > gain["detail"]["spread"])
    told.clear()
    assert bench(tmp_path, tell=told.append).run() == rows
    assert not told


def test_a_sitting_that_is_killed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.bench.training.bench, "_KEEP_EVERY_S", 0.0)
    clock = _ElapsedTime(tmp_path / "seconds.json")
    time.sleep(0.01)
    clock.keep()  # and is never stopped
    assert _ElapsedTime(tmp_path / "seconds.json").stop()[0] >= 0.01


def test_a_changed_recipe_gets_the_same_work() -> None:
    base = base_config(None, epochs=30, images=None, threads=1)
    definition = define_supernet(base.supernet.variant)
    budget = work(base, definition, 33)
    single = replace(base, schedule=replace(base.schedule, strategy="single"))
    longer = same_work(single, definition, 33, budget)
    assert longer.schedule.steps > 1.3 * 30 * 33
    assert work(longer, definition, 33) == pytest.approx(budget, rel=0.01)
    halved = replace(base, data=replace(base.data, batch_size=base.data.batch_size // 2))
    smaller = same_work(halved, definition, 66, budget)
    assert smaller.schedule.steps == pytest.approx(2 * 30 * 33, rel=0.01)
    shared = replace(base, schedule=replace(base.schedule, parts=2))
    assert same_work(shared, definition, 33, budget).schedule.steps > 1.05 * 30 * 33


def test_an_unknown_case_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"case 'ofa' is unknown, allowed {CASES[0]}"):
        bench(tmp_path, cases=("ofa",))


def test_the_points_are_five_sizes_from_smallest_to_largest() -> None:
    space = define_supernet("resnet20_cifar").space
    points = points_of(define_supernet("resnet20_cifar"))
    assert len(set(points)) == 5
    assert (points[0], points[-1]) == (space.smallest, space.largest)


def test_the_points_of_the_digits_are_five_different_networks() -> None:
    options = base_config(None, epochs=None, images=None, threads=1).supernet
    definition = define_supernet(options.variant, **options.overrides)
    macs = [cost(definition, arch).macs for arch in points_of(definition)]
    assert len(set(macs)) == 5
    assert macs == sorted(macs)
