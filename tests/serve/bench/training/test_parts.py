"""Parts of `supernet bench training` beside the strategies, each run once at the smallest size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import serve.bench.training.pace as pace
from serve.bench.training.bench import TrainingBench
from serve.bench.training.cases import base_config, norm_steps
from serve.bench.training.timed_run import FinishedRun
from training.trainer.trainer import Trainer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STEPS", 4)
    monkeypatch.setattr(pace, "ROUNDS", 1)
    monkeypatch.setattr("serve.bench.training.bench.RATES", (1.0,))


def bench(out: Path, *cases: str, **options: object) -> TrainingBench:
    base = base_config(None, epochs=3, images=192, threads=1)
    base = replace(
        base,
        data=replace(base.data, batch_size=32),
        evaluation=replace(base.evaluation, calibration_images=64),
    )
    return TrainingBench(out, base, cases=cases, num_seeds=1, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_each_size_alone_trains_that_shape_for_the_epochs_of_the_reference(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    run = Trainer.run

    def spy(self: Trainer, **options: object) -> bool:
        arch = self._strategy.plan(0)[0].arch
        if self.config.schedule.strategy == "single":
            trained.append((arch.subnet_id, self.total_steps))
        return run(self, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "run", spy)
    made = bench(tmp_path, "alone")
    rows = {row["figure"]: row for row in made.run()}
    finals = [shape for shape, steps in trained if steps == 3 * 192 // 32]
    assert finals == [arch.subnet_id for arch in made.points]
    assert made.table().splitlines()[2].startswith("| alone | 0.05/0.05/0.05/0.05/0.05 |")
    assert {f"training/alone/p{i}/accuracy" for i in range(1, 6)} <= set(rows)


@pytest.mark.slow
def test_ideas_leave_the_test_images_alone(tmp_path: Path, quick: None) -> None:
    """Norms tuned after fewer steps; what the front is drawn from; on validation alone."""
    made = bench(tmp_path, "deps", "deps_norms+deps_front", judged_on="validation")
    rows = {row["figure"]: row for row in made.run()}
    runs = [
        FinishedRun(**made._journal.get(f"validation/{case}/0"))
        for case in ("deps", "deps_norms+deps_front")
    ]
    assert all(not run.test and not run.test_hits for run in runs)
    given = made._journal.get("steps/validation/deps_norms+deps_front/0")
    assert runs[1].steps == norm_steps("deps_norms+deps_front", given)[0]
    assert all(len(run.validation) == 5 for run in runs)
    gap = rows["training/deps_norms+deps_front/mean/over_deps"]
    assert gap["detail"]["split"] == "validation"
