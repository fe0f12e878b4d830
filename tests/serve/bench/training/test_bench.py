"""`supernet bench training` at the smallest size: what is missing is run, what is there is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

import serve.bench.training.pace as pace
from serve.bench.training.bench import RATES, TrainingBench
from serve.bench.training.cases import (
    CASES,
    PARTS,
    REFERENCE,
    at_rate,
    base_config,
    cased,
    chosen_cases,
    described,
    judged_on,
    norm_steps,
    of_length,
    points_of,
)
from serve.bench.training.time_left import TimeLeft
from serve.bench.training.timed_run import FinishedRun, ProcessorClock
from supernet import cost, define_supernet
from training.trainer.run_log import StepReport


def bench(out: Path, **options) -> TrainingBench:
    base = base_config(None, epochs=2, images=256, threads=1)
    base = replace(
        base,
        data=replace(base.data, batch_size=64),
        evaluation=replace(base.evaluation, calibration_images=64),
    )
    return TrainingBench(out, base, num_seeds=2, **{"cases": ("deps", "single"), **options})


class Sittings(NamedTuple):
    """A bench that was stopped once: what it said, kept and returned."""

    out: Path
    told: list[str]
    begun: dict[str, dict]
    rows: list[dict]


@pytest.fixture(scope="module")
def sittings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sittings]:
    out, told = tmp_path_factory.mktemp("bench"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "STEPS", 8)
        patch.setattr(pace, "ROUNDS", 2)
        stops = iter(range(2 * 2 * 8 + 3 * 2 + 5))  # timing, three choosing runs, some steps
        bench(out, should_stop=lambda: next(stops, None) is None, tell=told.append).run()
        begun = journal_of(out)
        yield Sittings(out, told, begun, bench(out).run())


def journal_of(out: Path) -> dict[str, dict]:
    (path,) = out.glob("*/runs.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: cell for name, cell in lines if name.startswith(("tune", "final"))}


def test_a_bench_that_is_stopped_anywhere_goes_on(sittings: Sittings) -> None:
    assert sittings.told[-1] == "stopped; the same command goes on where it was"
    assert "final/deps/0" not in sittings.begun
    done = journal_of(sittings.out)
    assert set(done) == {
        *(f"tune/{case}/{0.05 * factor:g}" for case in ("deps", "single") for factor in RATES),
        *(f"final/{case}/{seed}" for case in ("deps", "single") for seed in (0, 1)),
    }
    assert {name: done[name] for name in sittings.begun} == sittings.begun
    told: list[str] = []
    assert bench(sittings.out, tell=told.append).run() == sittings.rows
    assert not told, "nothing is run again"


def test_rates_are_chosen_on_validation_and_tests_are_made_once(sittings: Sittings) -> None:
    by_figure = {row["figure"]: row for row in sittings.rows}
    runs = {name: FinishedRun(**cell) for name, cell in journal_of(sittings.out).items()}
    for case in ("deps", "single"):
        tuning = [run for name, run in runs.items() if name.startswith(f"tune/{case}/")]
        assert all(not run.test and not run.test_hits for run in tuning)
        judged = {run.lr: run.validation[-1:] if case == "single" else run.validation
                  for run in tuning}  # fmt: skip
        best = max(judged, key=lambda lr: sum(judged[lr]))
        finals = [runs[f"final/{case}/{seed}"] for seed in (0, 1)]
        assert {run.lr for run in finals} == {by_figure[f"training/{case}/rate"]["value"]} == {best}
        if case == "deps":  # the others have what takes as long
            assert {run.steps // 3 for run in finals} == {run.steps for run in tuning}
        for i in range(5):
            row = by_figure[f"training/{case}/p{i + 1}/accuracy"]
            assert row["detail"]["seeds"] == [run.hits("test")[i].mean() for run in finals]
            assert row["detail"]["validation"] == [run.validation[i] for run in finals]
        assert by_figure[f"training/{case}/cpu"]["detail"]["seeds"] == [r.cpu_s for r in finals]
    gap = by_figure["training/single/mean/over_deps"]
    means = [by_figure[f"training/{case}/mean/accuracy"]["value"] for case in ("single", "deps")]
    assert gap["value"] == pytest.approx(means[0] - means[1])
    low, high = gap["detail"]["ci95"]
    assert low < gap["value"] < high
    assert gap["detail"]["is_beyond_chance"] == (low > 0 or high < 0)


def test_cases_get_steps_for_equal_processor_time(tmp_path: Path, monkeypatch) -> None:
    made = bench(tmp_path, cases=("deps", "sandwich"))
    seconds = {"deps": 0.01, "sandwich": 0.04}
    monkeypatch.setattr("serve.bench.training.bench.seconds_per_step", lambda *_, **__: seconds)
    made._measure_pace()
    assert (made._steps("deps"), made._steps("sandwich")) == (8, 2 + 1)  # at least three


def test_the_time_of_a_step_is_that_of_the_cheapest_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = iter([[1.0, 5.0], [4.0, 2.0]])
    monkeypatch.setattr(pace, "STEPS", 2)
    monkeypatch.setattr(pace, "ROUNDS", 2)
    monkeypatch.setattr(pace, "_step_seconds", lambda *_: next(rounds))
    configs = {"deps": cased(base_config(None, epochs=1, images=None, threads=1), "deps", 0)}
    found = pace.seconds_per_step(
        configs,
        define_supernet("resnet_tiny"),
        None,  # pyright: ignore[reportArgumentType] # no run is made
        tmp_path,
        tell=lambda text: None,
        should_stop=lambda: False,
    )
    assert found == {"deps": 1.5}


def test_a_sitting_counts_up_to_the_state_that_it_left(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    clock = ProcessorClock(path, is_new=True)
    _work(0.02)
    clock.keep()
    kept_s = json.loads(path.read_text())
    assert kept_s >= 0.02
    _work(0.05)  # lost with the process, like the steps that it made
    assert ProcessorClock(path, is_new=False).stop() == pytest.approx(kept_s, abs=0.01)
    assert ProcessorClock(path, is_new=True).stop() < 0.01, "a run that begins anew"


def test_what_is_left_follows_what_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    told: list[str] = []
    left = TimeLeft(told.append, num_runs=2, expected_s=2 * 3600.0)
    assert left.text() == "2 h 0 min of processor time"
    left.begin("final/deps/0", step_s=36.0)
    now[0] += 36.0
    left.step(StepReport(51, 100, 0.1, 1.0, None, 1))  # resumed: half was made before
    assert told == [
        "final/deps/0: step 51 of 100; 0 of 2 runs done, 1 h 29 min of processor time left"
    ]
    now[0] += 36.0  # twice what a step should take
    assert left.text() == "2 h 59 min of processor time"


def test_a_case_changes_what_it_says_alone() -> None:
    base = base_config(None, epochs=30, images=None, threads=1)
    assert base.schedule.parts == 3, "the reference is what a config has by default"
    for case in CASES:
        changed = cased(base, case, 1)
        assert changed.seed == 1
        assert (changed == replace(base, seed=1)) == (case in (REFERENCE, "deps_norms"))
    assert {cased(base, case, 0).schedule.strategy for case in PARTS["strategies"]} == {
        *("deps", "sandwich", "progressive", "compound")
    }
    shorter = of_length(base, 100, 1 / 3)
    assert shorter.schedule.steps == 100
    assert shorter.schedule.ramp_epochs == pytest.approx(base.schedule.ramp_epochs / 3)


def test_an_unknown_case_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="case 'ofa' is unknown, allowed deps, deps_published"):
        bench(tmp_path, cases=("ofa",))
    with pytest.raises(ValueError, match="case 'alone' is unknown, .* but alone joined"):
        bench(tmp_path, cases=("deps_floor+alone",))
    with pytest.raises(ValueError, match="part 'idea' is unknown, allowed strategies, pairs"):
        chosen_cases("strategies,idea", None)
    with pytest.raises(ValueError, match="--judge train: allowed test, validation"):
        judged_on("train", "ideas", None)


def test_cases_joined_by_a_plus_change_what_each_does() -> None:
    base = base_config(None, epochs=30, images=None, threads=1)
    both = cased(base, "deps_floor+deps_front+deps_batch_64", 0)
    assert both.optimizer.min_lr == pytest.approx(0.05 * base.optimizer.lr)
    assert (both.schedule.front, both.data.batch_size) == (0.75, 64)
    faster = at_rate(both, 3 * base.optimizer.lr)
    assert faster.optimizer.lr == 3 * base.optimizer.lr
    assert faster.optimizer.min_lr == pytest.approx(0.05 * faster.optimizer.lr), "a share of it"
    assert norm_steps("deps", 300) == (300, 0)
    assert norm_steps("deps_floor+deps_norms", 300) == (280, 10)


def test_ideas_are_chosen_among_on_validation_and_all_else_is_told_on_test() -> None:
    assert judged_on("", "ideas", None) == judged_on("", "pairs,ideas", None) == "validation"
    assert judged_on("", "strategies", None) == judged_on("", "ideas", "deps") == "test"
    assert judged_on("test", "ideas", None) == "test"
    assert chosen_cases("pairs,ideas", None).count("deps") == 1
    assert chosen_cases("pairs", "deps,single") == ("deps", "single")


def test_a_base_run_is_known_by_what_differs_from_the_defaults() -> None:
    base = base_config(None, epochs=30, images=None, threads=7)
    told = described(base)
    assert told["data"] == {"limit": 320}
    assert told["schedule"] == {"epochs": 30, "ramp_epochs": 2.0}
    assert "threads" not in told
    assert told["supernet"]["overrides"]["widths"] == [32, 32]
    assert described(replace(base, seed=1)) != told


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


def _work(duration_s: float) -> None:
    end_s = time.process_time() + duration_s
    while time.process_time() < end_s:
        pass
