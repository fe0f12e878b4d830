"""`supernet bench training`: the strategies against each other at equal processor time.

1. What a step of each case costs is timed side by side, for a first idea of how many it gets.
2. Three learning rates per case, a third of the length, one seed: the best on the validation
   images is taken. They also tell what a step costs in a run.
3. Several seeds of each case at its rate and whole length: of the reference its epochs, of the
   others as many steps as take the processor time of the reference's runs (`time_account.py`).
   Only these are measured on the test images, once; nothing is chosen on them. Where it is to be
   chosen among cases, they are measured on the validation images alone.

The case `alone` is a run for each size, which trains that shape by itself for as many epochs as the
reference: what sharing costs it.

Every finished run is a line of `runs.jsonl`, and an unfinished one is resumed, so the benchmark can
be interrupted, killed or paused at any time and goes on with the same command. Accuracies are
calibrated, of the same subnets for all, evenly spread over MACs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.training.cases import (
    ALONE,
    REFERENCE,
    Split,
    at_rate,
    cased,
    check_cases,
    described,
    norm_steps,
    of_length,
    place_of,
    points_of,
)
from serve.bench.training.comparison import CaseComparison, Tuned
from serve.bench.training.pace import seconds_per_step
from serve.bench.training.time_account import SpentTime, step_cost_s, steps_for
from serve.bench.training.time_left import TimeLeft
from serve.bench.training.timed_run import FinishedRun, StoppedError, TimedRun, of_all_shapes
from supernet import Arch, cost, define_supernet
from training.config import TrainConfig
from training.data.data import load_dataset, steps_per_epoch
from training.data.samples import Dataset
from training.trainer.resume import RESUME_FILE
from training.trainer.trainer import Trainer

RATES = (0.3, 1.0, 3.0)
"""The learning rates that are tried, as multiples of the base run's."""
TUNING_SHARE = 3
"""A run that only chooses a rate has one part in so many of the steps."""
_TUNING_SEED = 0


class PlannedRun(NamedTuple):
    """A run to make: its name in the journal, and what it is."""

    name: str
    case: str
    seed: int
    lr: float
    steps: int
    is_final: bool


class TrainingBench:
    """Runs what is missing and turns all into rows."""

    def __init__(
        self,
        out: Path,
        base: TrainConfig,
        *,
        cases: Sequence[str],
        num_seeds: int,
        judged_on: Split = "test",
        tell: Tell = lambda text: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        """Runs are kept in a folder of `out` that is named after the base run.

        Raises ValueError listing the known cases.
        """
        check_cases(cases)
        self._base, self._tell, self._should_stop = base, tell, should_stop
        self._asked, self._num_seeds = tuple(dict.fromkeys(cases)), num_seeds
        self._judged_on: Split = judged_on
        options = base.supernet
        self._definition = define_supernet(options.variant, **options.overrides)
        self.points = points_of(self._definition)
        shapes = [f"{ALONE}_p{i + 1}" for i in range(len(self.points))]
        self._cases_of = {case: shapes if case == ALONE else [case] for case in self._asked}
        self._cases = [case for cases in self._cases_of.values() for case in cases]
        settings = {
            "base": described(base),
            "points": [arch.subnet_id for arch in self.points],
        }
        text = json.dumps(settings, sort_keys=True)
        self._out = out / hashlib.sha256(text.encode()).hexdigest()[:8]
        self._journal = Journal(self._out / "runs.jsonl", settings)
        self._loaded: tuple[int, Dataset] | None = None

    def run(self) -> list[Row]:
        """Do the runs that are missing; rows of what is there when it ends or is stopped."""
        try:
            self._measure_pace()
            clock = self._time_left()
            for planned in self._tuning():
                self._do(planned, clock)
            for planned in self._finals():
                self._do(planned, clock)
        except StoppedError:
            self._tell("stopped; the same command goes on where it was")
        return self.rows()

    def rows(self) -> list[Row]:
        """Rows `figure, value, unit, detail` of the runs that are finished."""
        return self._comparison().rows(self._budget_s())

    def table(self) -> str:
        """The finished runs as a table in Markdown, and below how equal their times are."""
        compared = self._comparison()
        return "\n\n".join(filter(None, (compared.table(), compared.times())))

    def step_cost(self, repeats: int = 15) -> Row:
        """What a step of max, min and two random costs against the full model alone, interleaved.

        Fastest of `repeats` each; the goal is 2.6 or less.
        """
        data = self._data(0)
        trainers = [
            Trainer(self._cased(case, 0), self._definition, data, self._folder("step_cost"))
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

    # --- what is run -------------------------------------------------------------------------

    def _measure_pace(self) -> None:
        """Time the steps of cases not timed yet, beside the reference's, in one go."""
        asked = dict.fromkeys((REFERENCE, *self._cases))
        missing = [case for case in asked if f"pace/{case}" not in self._journal]
        if not missing:
            return
        cases = list(dict.fromkeys((REFERENCE, *missing)))
        paces = seconds_per_step(
            {case: self._cased(case, 0) for case in cases},
            self._definition,
            self._data(0),
            self._folder("pace"),
            tell=self._tell,
            should_stop=self._should_stop,
        )
        for case in missing:
            pair = [paces[case], paces[REFERENCE]]
            self._journal.once(f"pace/{case}", lambda pair=pair: pair)
            self._tell(f"{case}: {pair[0] * 1e3:.1f} ms a step, some {self._steps(case)} steps")

    def _cased(self, case: str, seed: int) -> TrainConfig:
        return cased(self._base, case, seed, self.points)

    def _tuning(self) -> Iterator[PlannedRun]:
        """Rate by rate, so that a machine that gets busier does not make one case dearer."""
        for place in range(len(RATES)):
            for case in self._cases:
                yield self._tuning_run(case, self._rates(case)[place])
        if REFERENCE not in self._cases and any(place_of(case) is None for case in self._cases):
            # Nobody asked for it, but its time is what the others get.
            yield self._tuning_run(REFERENCE, self._cased(REFERENCE, 0).optimizer.lr)

    def _tuning_run(self, case: str, lr: float) -> PlannedRun:
        steps = self._tuning_steps(case)
        return PlannedRun(f"tune/{case}/{lr:g}", case, _TUNING_SEED, lr, steps, False)

    def _finals(self) -> Iterator[PlannedRun]:
        """Seed by seed, of each the reference first: how long it takes is what the others get."""
        for seed in range(self._num_seeds):
            for case in sorted(self._cases, key=lambda case: case != REFERENCE):
                name, steps = self._final(case, seed), self._earned_steps(case, seed)
                tuned = self._tuned(case)
                yield PlannedRun(name, case, seed, tuned.lr if tuned else 0.0, steps, True)

    def _final(self, case: str, seed: int) -> str:
        kind = "final" if self._judged_on == "test" else self._judged_on
        return f"{kind}/{case}/{seed}"

    def _do(self, planned: PlannedRun, clock: TimeLeft) -> None:
        if planned.name in self._journal:
            return
        if self._should_stop():
            raise StoppedError
        config = at_rate(self._cased(planned.case, planned.seed), planned.lr)
        share = 1.0 if planned.is_final else 1.0 / TUNING_SHARE
        folder = self._folder_of(planned.name)
        given = self._given_steps(planned) if planned.is_final else planned.steps
        steps, tuning = norm_steps(planned.case, given)
        place = place_of(planned.case)
        run = TimedRun(
            of_length(config, steps, share),
            self._definition,
            self._data(planned.seed),
            folder,
            self.points if place is None else self.points[place : place + 1],
            norm_steps=tuning,
        )
        clock.begin(f"{planned.name} at rate {planned.lr:g}", step_s=self._step_s(planned.case))
        done = run.finish(
            planned.case,
            with_test=planned.is_final and self._judged_on == "test",
            progress=clock.step,
            should_stop=self._should_stop,
        )
        self._journal.once(planned.name, done._asdict)
        run.tidy()
        mean = np.mean(done.validation)
        clock.end(f"validation mean {mean:.4f}, {done.cpu_s:.0f} s of processor time")

    # --- what follows from the journal -------------------------------------------------------

    def _rates(self, case: str) -> list[float]:
        lr = self._cased(case, 0).optimizer.lr
        return [float(f"{lr * factor:.6g}") for factor in RATES]

    def _tuned(self, case: str) -> Tuned | None:
        """The rate with the best mean validation accuracy over the sizes that the case trains."""
        names = {lr: f"tune/{case}/{lr:g}" for lr in self._rates(case)}
        if not all(name in self._journal for name in names.values()):
            return None
        is_single = self._cased(case, 0).schedule.strategy == "single"
        judged = slice(-1, None) if is_single else slice(None)
        tried = {lr: float(np.mean(self._run(n).validation[judged])) for lr, n in names.items()}
        return Tuned(max(tried, key=lambda lr: tried[lr]), tried)

    def _all_tuned(self) -> dict[str, Tuned]:
        tuned = {case: self._tuned(case) for case in self._cases}
        return {case: found for case, found in tuned.items() if found is not None}

    def _comparison(self) -> CaseComparison:
        return CaseComparison(self._finished(), self._all_tuned(), self._sizes(), self._judged_on)

    def _finished(self) -> dict[str, list[FinishedRun]]:
        """By case that was asked for; of the shapes alone the seeds of which all are there."""
        seeds = range(self._num_seeds)
        found: dict[str, list[FinishedRun]] = {}
        for asked, cases in self._cases_of.items():
            groups = [[self._final(case, seed) for case in cases] for seed in seeds]
            runs = [[self._run(n) for n in g] for g in groups if all(n in self._journal for n in g)]
            found[asked] = [of_all_shapes(r) if asked == ALONE else r[0] for r in runs]
        return found

    def _run(self, name: str) -> FinishedRun:
        return FinishedRun(**self._journal.get(name))

    @cached_property
    def _reference_steps(self) -> int:
        config = cased(self._base, REFERENCE, 0)
        per_epoch = steps_per_epoch(self._data(0).train, config.data.batch_size)
        return config.schedule.steps or config.schedule.epochs * per_epoch

    def _steps(self, case: str) -> int:
        """About how many steps take the reference's time, by what was timed side by side.

        Of a shape alone as many as its epochs have.
        """
        if place_of(case) is not None:
            return self._reference_steps
        mine_s, reference_s = self._journal.get(f"pace/{case}")
        return max(TUNING_SHARE, round(self._reference_steps * reference_s / mine_s))

    def _tuning_steps(self, case: str) -> int:
        return max(1, self._steps(case) // TUNING_SHARE)

    def _given_steps(self, planned: PlannedRun) -> int:
        """The steps of a final run, kept before it begins: one that goes on has the same.

        A run that began when steps followed from the side by side timing alone keeps those.
        """
        has_begun = (self._folder_of(planned.name) / RESUME_FILE).exists()
        return self._journal.once(
            f"steps/{planned.name}",
            lambda: self._steps(planned.case) if has_begun else planned.steps,
        )

    def _earned_steps(self, case: str, seed: int) -> int:
        """The steps of a final run, by the processor time of the runs that there are."""
        if case == REFERENCE or place_of(case) is not None:
            return self._reference_steps
        aimed_s = [self._aimed_s(k) for k in range(seed + 1)]
        before = [self._final_s(case, k) for k in range(seed)]
        spent_s = [a if s is None else s for s, a in zip(before, aimed_s[:seed], strict=True)]
        return steps_for(self._step_s(case), aimed_s=aimed_s, spent_s=spent_s)

    def _aimed_s(self, seed: int) -> float:
        """The processor time of the reference's run (s), as it was or as is to be expected."""
        took_s = self._final_s(REFERENCE, seed)
        return self._reference_steps * self._step_s(REFERENCE) if took_s is None else took_s

    def _final_s(self, case: str, seed: int) -> float | None:
        """What a final run took (s); None before it is over, or where it broke off."""
        name = self._final(case, seed)
        run = self._run(name) if name in self._journal else None
        return None if run is None or run.is_diverged else run.cpu_s

    def _step_s(self, case: str) -> float:
        """The processor time of a step in the runs that are over (s), or before as it was timed."""
        mine_s, beside_s = self._journal.get(f"pace/{case}")
        timed_s = mine_s * self._journal.get(f"pace/{REFERENCE}")[0] / beside_s
        return step_cost_s(self._spent(case), otherwise_s=timed_s)

    def _spent(self, case: str) -> list[SpentTime]:
        """Time and given steps of the runs of a case that came to their end."""
        steps = {f"tune/{case}/{lr:g}": self._tuning_steps(case) for lr in self._rates(case)}
        for seed in range(self._num_seeds):
            name = self._final(case, seed)
            kept = f"steps/{name}"  # a journal of before has none
            steps[name] = self._journal.get(kept) if kept in self._journal else self._steps(case)
        runs = {name: self._run(name) for name in steps if name in self._journal}
        return [SpentTime(run.cpu_s, steps[n]) for n, run in runs.items() if not run.is_diverged]

    def _budget_s(self) -> float:
        """The mean processor time that a run aims at (s); 0 before it is known."""
        if f"pace/{REFERENCE}" not in self._journal:
            return 0.0
        return float(np.mean([self._aimed_s(seed) for seed in range(self._num_seeds)]))

    def _time_left(self) -> TimeLeft:
        planned = [*self._tuning(), *self._finals()]
        ahead = [run for run in planned if run.name not in self._journal]
        expected_s = sum(run.steps * self._step_s(run.case) for run in ahead)
        return TimeLeft(self._tell, num_runs=len(ahead), expected_s=expected_s)

    def _sizes(self) -> list[tuple[Arch, int]]:
        return [(arch, cost(self._definition, arch).macs) for arch in self.points]

    def _folder_of(self, run: str) -> Path:
        return self._out / run.replace("/", "-")

    def _folder(self, name: str) -> Path:
        (self._out / name).mkdir(parents=True, exist_ok=True)
        return self._out / name

    def _data(self, seed: int) -> Dataset:
        """The same split for every seed would hide how much a split matters: it follows it."""
        if self._loaded is None or self._loaded[0] != seed:
            self._loaded = (seed, load_dataset(self._base.data, seed))
        return self._loaded[1]
