"""Equal processor time: what runs took says how many steps a case gets, not what was timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.bench.training.bench import RATES, PlannedRun, TrainingBench
from serve.bench.training.cases import base_config
from serve.bench.training.time_account import SpentTime, step_cost_s, steps_for
from serve.bench.training.timed_run import FinishedRun, TimedRun, packed
from training.trainer.resume import RESUME_FILE

STEPS = 300  # of the reference
TIMED_S = {"deps": 0.010, "sandwich": 0.0206, "progressive": 0.015}
COSTS_S = {"deps": 0.013, "sandwich": 0.0229, "progressive": 0.0182}
"""What a step takes in a run: 1.76 of the reference's where it was timed at 2.06 of it."""
BUSY = {("deps", 1): 1.13, ("sandwich", 2): 0.95, ("progressive", 0): 1.2}
"""Runs that met a busier, or a calmer, machine than the others."""


class PretendedRun(TimedRun):
    """Takes the time that its steps cost; trains nothing and knows all answers."""

    def finish(self, case: str, **options: Any) -> FinishedRun:
        config, count = self._config, len(self._points)
        steps = config.schedule.steps
        is_final = options["with_test"]
        cpu_s = steps * COSTS_S[case] * (BUSY.get((case, config.seed), 1.0) if is_final else 1.0)
        right = packed(np.ones((count, 4), dtype=bool))
        return FinishedRun(
            case, config.seed, config.optimizer.lr, steps, cpu_s, [1.0] * count,
            [1.0] * count if is_final else [], right if is_final else "", validation_hits=right,
        )  # fmt: skip


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.bench.training.bench.TimedRun", PretendedRun)
    monkeypatch.setattr("serve.bench.training.bench.seconds_per_step", _timed)


def bench(out: Path, *cases: str) -> TrainingBench:
    base = base_config(None, epochs=None, images=64, threads=1)
    base = replace(base, schedule=replace(base.schedule, steps=STEPS))
    return TrainingBench(out, base, cases=cases, num_seeds=3)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("cases", [("deps", "sandwich", "progressive"), ("sandwich", "deps")])
def test_cases_take_the_reference_s_processor_time(tmp_path: Path, cases: tuple[str, ...]) -> None:
    rows = {row["figure"]: row for row in bench(tmp_path, *cases).run()}
    assert rows["training/deps/cpu"]["detail"]["steps"] == [STEPS] * 3
    took_s = {case: sum(rows[f"training/{case}/cpu"]["detail"]["seeds"]) for case in cases}
    for case in cases:
        assert took_s[case] == pytest.approx(took_s["deps"], rel=0.03), case
        if case != "deps":
            ratio = rows[f"training/{case}/cpu/over_deps"]["value"]
            assert ratio == pytest.approx(took_s[case] / took_s["deps"])


@pytest.mark.usefixtures("pretended")
def test_a_bench_without_its_reference_runs_that_once_to_know_its_time(tmp_path: Path) -> None:
    made = bench(tmp_path, "sandwich", "progressive")
    rows = {row["figure"]: row for row in made.run()}
    for case in ("sandwich", "progressive"):
        took_s = rows[f"training/{case}/cpu"]["detail"]["seeds"]
        assert sum(took_s) == pytest.approx(3 * STEPS * COSTS_S["deps"], rel=0.03)
    assert not any(figure.startswith("training/deps") for figure in rows)
    names = [planned.name for planned in made._tuning()]
    assert names[:2] == [f"tune/{case}/{0.05 * RATES[0]:g}" for case in ("sandwich", "progressive")]
    assert names[-1] == "tune/deps/0.05"


@pytest.mark.usefixtures("pretended")
def test_a_run_that_goes_on_has_the_steps_that_it_began_with(tmp_path: Path) -> None:
    made = bench(tmp_path, "deps", "sandwich")
    made._measure_pace()
    first = PlannedRun("final/sandwich/0", "sandwich", 0, 0.1, 200, True)
    assert made._given_steps(first) == 200
    again = bench(tmp_path, "deps", "sandwich")
    assert again._given_steps(first._replace(steps=190)) == 200, "kept in the journal"
    begun = first._replace(name="final/sandwich/1", seed=1)
    (made._folder("final-sandwich-1") / RESUME_FILE).touch()
    assert made._given_steps(begun) == made._steps("sandwich") == round(STEPS / 2.06)


def test_a_run_is_neither_starved_nor_endless() -> None:
    assert steps_for(0.5, aimed_s=[100.0], spent_s=[]) == 200
    assert steps_for(0.5, aimed_s=[100.0, 100.0], spent_s=[400.0]) == 100
    assert steps_for(0.5, aimed_s=[100.0, 100.0, 100.0], spent_s=[1.0, 1.0]) == 400
    assert steps_for(500.0, aimed_s=[100.0], spent_s=[]) == 1


def test_what_a_step_costs_is_over_all_runs() -> None:
    assert step_cost_s([SpentTime(10.0, 100), SpentTime(80.0, 300)], otherwise_s=1.0) == 0.225
    assert step_cost_s([], otherwise_s=1.5) == 1.5


def _timed(configs: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, float]:
    return {case: TIMED_S[case] for case in configs}
