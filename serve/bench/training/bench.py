"""`supernet bench training`: the strategies against each other, everything else equal.

Same data, space, epochs and seeds; every run ends with calibrated accuracies of the same subnets,
evenly spread over MACs, on test images that nothing was chosen on. Every finished run is kept, and
an unfinished one is resumed, so the benchmark can be done in several sittings.

Changes to DepS (`deps_*`) get as many steps as cost the same number of multiply-accumulates as the
plain run's; the measured wall time is reported beside it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from serve.bench.rows import Row, Tell, row
from serve.bench.training.cases import CASES, CHANGES, cased, points_of, same_work, work
from slackfit.output_files import write_text
from supernet import Arch, cost, define_supernet
from training.config import TrainConfig
from training.data.data import load_dataset, steps_per_epoch
from training.data.samples import Dataset
from training.evaluation.evaluate import measure
from training.trainer.trainer import Trainer

_KEEP_EVERY_S = 10.0


class TrainingRun(NamedTuple):
    """A finished run: accuracy on the test images by subnet id, ascending in MACs, and seconds.

    `cpu_s` is the processor's time of all threads: it does not count what else the machine did.
    """

    case: str
    seed: int
    accuracy: dict[str, float]
    wall_s: float
    cpu_s: float
    steps: int


class TrainingBench:
    """Runs what is missing and turns all into rows."""

    def __init__(
        self,
        out: Path,
        base: TrainConfig,
        *,
        cases: Sequence[str],
        num_seeds: int,
        tell: Tell = lambda text: None,
    ):
        """Runs are kept in `out`. Raises ValueError listing the known cases."""
        unknown = sorted(set(cases) - set(CASES))
        if unknown:
            raise ValueError(f"case {unknown[0]!r} is unknown, allowed {', '.join(CASES)}")
        self._out, self._base, self._tell = out, base, tell
        self._cases, self._num_seeds = tuple(cases), num_seeds
        options = base.supernet
        self._definition = define_supernet(options.variant, **options.overrides)
        self.points = points_of(self._definition)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> list[Row]:
        """Do the runs that are missing, seed by seed; rows of what is there when it ends."""
        for seed in range(self._num_seeds):
            for case in self._cases:
                if should_stop():
                    return self.rows()
                self._run(case, seed, should_stop)
        return self.rows()

    def rows(self) -> list[Row]:
        """Rows `figure, value, unit, detail` of the runs that are finished."""
        runs = [run for run in map(self._load, *self._all()) if run is not None]
        by_case = {case: [r for r in runs if r.case == case] for case in self._cases}
        rows: list[Row] = []
        for case, mine in by_case.items():
            if mine:
                rows += self._case_rows(case, mine, by_case.get("deps", []))
        return rows

    def step_cost(self, repeats: int = 15) -> Row:
        """What a step of max, min and two random costs against the full model alone, interleaved.

        Fastest of `repeats` each; the goal is 2.6 or less.
        """
        data = self._data(0)
        trainers = [
            Trainer(cased(self._base, case, 0), self._definition, data, self._folder("step_cost"))
            for case in ("single", "sandwich")
        ]
        size = self._base.data.batch_size
        batch = data.train.take(torch.arange(size))
        best = [float("inf")] * len(trainers)
        for _ in range(repeats):
            for i, trainer in enumerate(trainers):
                started_s = time.perf_counter()
                trainer._train_step(batch)
                best[i] = min(best[i], time.perf_counter() - started_s)
        macs = [cost(self._definition, arch).macs for arch in (self.points[-1], self.points[0])]
        detail = {
            "single_ms": best[0] * 1e3,
            "sandwich_ms": best[1] * 1e3,
            "batch_size": size,
            "threads": torch.get_num_threads(),
            "macs_smallest_over_largest": macs[1] / macs[0],
        }
        return row("training/step_cost/sandwich_over_single", best[1] / best[0], "ratio", detail)

    def _all(self) -> tuple[list[str], list[int]]:
        pairs = [(case, seed) for case in self._cases for seed in range(self._num_seeds)]
        return [case for case, _ in pairs], [seed for _, seed in pairs]

    def _run(self, case: str, seed: int, should_stop: Callable[[], bool]) -> None:
        if self._load(case, seed) is not None:
            return
        config, folder = self._config(case, seed), self._run_folder(case, seed)
        resume = (folder / "resume.safetensors").exists()
        folder.mkdir(parents=True, exist_ok=True)
        data = self._data(seed)
        trainer = Trainer(config, self._definition, data, folder, resume=resume)
        self._tell(f"{case}, seed {seed}: step {trainer.step} of {trainer.total_steps}")
        clock = _ElapsedTime(folder / "seconds.json")
        finished = trainer.run(should_stop=lambda: clock.keep() or should_stop())
        wall_s, cpu_s = clock.stop()
        if not finished:
            return
        accuracy = {arch.subnet_id: self._accuracy(trainer, data, arch) for arch in self.points}
        run = TrainingRun(case, seed, accuracy, wall_s, cpu_s, trainer.total_steps)
        write_text(folder / "result.json", json.dumps(run._asdict()) + "\n")
        (folder / "resume.safetensors").unlink()
        mean = np.mean(list(accuracy.values()))
        self._tell(f"{case}, seed {seed}: mean {mean:.4f}, {wall_s:.0f} s")

    def _accuracy(self, trainer: Trainer, data: Dataset, arch: Arch) -> float:
        measured = measure(
            {name: tensor.cpu() for name, tensor in trainer.state().items()},
            self._definition,
            arch,
            input_spec=data.input,
            calibration=data.train,
            calibration_images=self._base.evaluation.calibration_images,
            held_out=data.test,
        )
        return measured.accuracy

    def _case_rows(self, case: str, runs: list[TrainingRun], deps: list[TrainingRun]) -> list[Row]:
        macs = {a.subnet_id: cost(self._definition, a).macs for a in self.points}
        rows = [
            _mean_row(
                f"{case}/p{i + 1}/accuracy",
                [r.accuracy[a.subnet_id] for r in runs],
                "fraction",
                subnet_id=a.subnet_id,
                macs=macs[a.subnet_id],
            )
            for i, a in enumerate(self.points)
        ]
        means = [float(np.mean(list(r.accuracy.values()))) for r in runs]
        rows.append(_mean_row(f"{case}/mean/accuracy", means, "fraction"))
        rows.append(_mean_row(f"{case}/wall", [r.wall_s for r in runs], "s", steps=runs[0].steps))
        rows.append(_mean_row(f"{case}/cpu", [r.cpu_s for r in runs], "s"))
        paired = {r.seed: r for r in deps}
        both = [(r, paired[r.seed]) for r in runs if r.seed in paired]
        if case != "deps" and both:
            for name, pick in self._picks().items():
                gains = [pick(mine) - pick(other) for mine, other in both]
                gain = _mean_row(f"{case}/{name}/over_deps", gains, "fraction")
                spread = gain["detail"]["spread"]
                gain["detail"]["counts"] = len(gains) > 1 and abs(gain["value"]) > spread
                rows.append(gain)
        return rows

    def _picks(self) -> dict[str, Callable[[TrainingRun], float]]:
        picks: dict[str, Callable[[TrainingRun], float]] = {
            f"p{i + 1}": lambda run, name=arch.subnet_id: run.accuracy[name]
            for i, arch in enumerate(self.points)
        }
        return {**picks, "mean": lambda run: float(np.mean(list(run.accuracy.values())))}

    def _config(self, case: str, seed: int) -> TrainConfig:
        config = cased(self._base, case, seed)
        if case not in CHANGES:
            return config
        train, plain = self._data(seed).train, cased(self._base, "deps", seed)
        steps, plain_steps = (steps_per_epoch(train, c.data.batch_size) for c in (config, plain))
        budget = work(plain, self._definition, plain_steps)
        return same_work(config, self._definition, steps, budget)

    def _load(self, case: str, seed: int) -> TrainingRun | None:
        path = self._run_folder(case, seed) / "result.json"
        if not path.is_file():
            return None
        return TrainingRun(**json.loads(path.read_text(encoding="utf-8")))

    def _run_folder(self, case: str, seed: int) -> Path:
        points = [arch.subnet_id for arch in self.points]
        described = json.dumps([asdict(cased(self._base, case, seed)), points], sort_keys=True)
        digest = hashlib.sha256(described.encode()).hexdigest()[:8]
        return self._out / f"{case}-seed{seed}-{digest}"

    def _folder(self, name: str) -> Path:
        (self._out / name).mkdir(parents=True, exist_ok=True)
        return self._out / name

    def _data(self, seed: int) -> Dataset:
        """The same split for every seed would hide how much a split matters: it follows it."""
        return load_dataset(self._base.data, seed)


def _mean_row(figure: str, values: list[float], unit: str, **detail: Any) -> Row:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    detail |= {"seeds": values, "spread": spread}
    return row(f"training/{figure}", float(np.mean(values)), unit, detail, digits=9)


class _ElapsedTime:
    """Wall and processor seconds of a run over all its sittings, in a small file beside it.

    The file is kept up to date while a sitting lasts, so that one that is killed counts too.
    """

    def __init__(self, path: Path):
        self._path = path
        self._before = json.loads(path.read_text()) if path.exists() else [0.0, 0.0]
        self._started = (time.perf_counter(), time.process_time())
        self._kept_s = self._started[0]

    def keep(self) -> None:
        """Write the sums, some seconds after they were written last."""
        if time.perf_counter() - self._kept_s > _KEEP_EVERY_S:
            self._kept_s = time.perf_counter()
            self.stop()

    def stop(self) -> tuple[float, float]:
        """Add this sitting and return the sums."""
        now = (time.perf_counter(), time.process_time())
        wall_s, cpu_s = (
            before + end - start
            for before, end, start in zip(self._before, now, self._started, strict=True)
        )
        write_text(self._path, json.dumps([wall_s, cpu_s]) + "\n")
        return wall_s, cpu_s
