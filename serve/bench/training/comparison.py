"""What each case reached, and its difference from the reference, as rows and as a table.

Runs of one seed saw the same split and are measured on the same images, so cases are compared in
pairs. The interval of a difference has two parts that are independent: another seed would give
other weights (Student's t over the seeds' differences), and other images other answers (the images
on which the two differ, McNemar). Test images are the same for all seeds, validation images each
seed's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.bench.rows import Row, row
from serve.bench.training.cases import ALONE, REFERENCE, Split, place_of
from serve.bench.training.timed_run import FinishedRun
from supernet import Arch
from traces.simulation.cells import estimate
from training.evaluation.domination import paired_difference

_EQUAL = 0.05  # times that differ by no more are called equal


class Tuned(NamedTuple):
    """The rate chosen for a case, and the validation accuracy of each that was tried."""

    lr: float
    tried: dict[float, float]

    @property
    def is_at_edge(self) -> bool:
        """Whether no rate below, or none above, the best one was tried."""
        return self.lr in (min(self.tried), max(self.tried))


class PairedGain(NamedTuple):
    """A case's accuracy less the reference's (a fraction), its 95 % interval, pairs of seeds."""

    value: float
    low: float
    high: float
    num_seeds: int

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the interval leaves out 0; one seed alone says nothing about others."""
        return self.num_seeds > 1 and (self.low > 0 or self.high < 0)


def difference(
    runs: Sequence[FinishedRun],
    reference: Sequence[FinishedRun],
    points: Sequence[int],
    split: Split = "test",
) -> PairedGain | None:
    """Compare the mean accuracy over `points` of runs with the same seeds; None without a pair."""
    of_seed = {run.seed: run for run in reference}
    pairs = [(run, of_seed[run.seed]) for run in runs if run.seed in of_seed]
    if not pairs:
        return None
    which = list(points)
    mine, theirs = (
        np.stack([run.hits(split)[which].mean(axis=0) for run in side])  # (seeds, samples)
        for side in zip(*pairs, strict=True)
    )
    by_seed = estimate((mine - theirs).mean(axis=1).tolist())
    if split == "test":
        mine, theirs = mine.mean(axis=0), theirs.mean(axis=0)
    value, (low, high) = paired_difference(mine.ravel(), theirs.ravel())
    half = math.hypot(by_seed.half_width, (high - low) / 2)
    return PairedGain(value, value - half, value + half, len(pairs))


class CaseComparison(NamedTuple):
    """The finished runs by case, the rates that were chosen, `points` as archs with their MACs.

    `split` says on which images cases are compared; runs were measured on the validation images in
    any case.
    """

    runs: Mapping[str, Sequence[FinishedRun]]
    tuned: Mapping[str, Tuned]
    points: Sequence[tuple[Arch, int]]
    split: Split = "test"

    def rows(self, budget_s: float) -> list[Row]:
        """Rows of every case with a finished run; `budget_s` is the processor time aimed at."""
        rates = [_rate(case, tuned) for case, tuned in self.tuned.items() if self._has(case)]
        found = [one for case, runs in self.runs.items() if runs for one in self._rows_of(case)]
        cpu = [self._cpu_of(case, budget_s) for case, runs in self.runs.items() if runs]
        times = [
            row(f"training/{case}/cpu/over_{REFERENCE}", ratio, "ratio", {}, digits=9)
            for case, ratio in self._time_ratios().items()
        ]
        return [*found, *cpu, *times, *rates]

    def table(self) -> str:
        """A table in Markdown: accuracies in per cent, means over the seeds."""
        sizes = [f"{macs / 1e6:.1f} M" for _, macs in self.points]
        head = ["case", "rate", *sizes, "mean", f"less {REFERENCE} (95 %)", "core s"]
        lines = [head, ["---", *["--:"] * (len(head) - 1)]]
        for case, runs in self.runs.items():
            if runs:
                reached = np.mean([run.accuracies(self.split) for run in runs], axis=0) * 100
                gap = self._gap(case, range(len(self.points)))
                diverged = sum(run.is_diverged for run in runs)
                mark = f" ({diverged} of {len(runs)} diverged)" if diverged else ""
                lines.append(
                    [
                        case + mark,
                        self._rates_of(case),
                        *(f"{value:.1f}" for value in reached),
                        f"{reached.mean():.1f}",
                        "" if gap is None or case == REFERENCE else _points(gap),
                        f"{np.mean([run.cpu_s for run in runs]):.0f}",
                    ]
                )
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def times(self) -> str:
        """How equal the processor times are, in a sentence or two; empty for a case alone."""
        ratios = self._time_ratios()
        if not ratios:
            return ""
        told = ", ".join(f"{case} {ratio:.2f}" for case, ratio in ratios.items())
        apart = [case for case, ratio in ratios.items() if abs(ratio - 1.0) > _EQUAL]
        text = f"Processor time over that of {REFERENCE}: {told}."
        return f"{text} Not equal within {_EQUAL:.0%}: {', '.join(apart)}." if apart else text

    def _time_ratios(self) -> dict[str, float]:
        """Processor time over the reference's, in runs of the same seeds, by case.

        Not of runs that broke off, nor of the shapes alone, which get the epochs of the reference
        and not its time.
        """
        reference_s = {run.seed: run.cpu_s for run in _whole(self.runs.get(REFERENCE, ()))}
        ratios: dict[str, float] = {}
        for case, runs in self.runs.items():
            both = [run for run in _whole(runs) if run.seed in reference_s]
            if both and case not in (REFERENCE, ALONE):
                beside_s = sum(reference_s[run.seed] for run in both)
                ratios[case] = sum(run.cpu_s for run in both) / beside_s
        return ratios

    def _cpu_of(self, case: str, budget_s: float) -> Row:
        runs = self.runs[case]
        aimed = {} if case == ALONE else {"aimed_at_s": round(budget_s, 1)}
        steps = [run.steps for run in runs]
        return _mean_row(f"{case}/cpu", [run.cpu_s for run in runs], "s", steps=steps, **aimed)

    def _has(self, case: str) -> bool:
        """Whether a tuned case is one of those that finished, or a shape of one."""
        name = case if place_of(case) is None else case.rpartition("_p")[0]
        return bool(self.runs.get(name))

    def _rates_of(self, case: str) -> str:
        """The chosen rate; of shapes that are trained alone each one's own."""
        if case in self.tuned:
            return f"{self.tuned[case].lr:g}"
        own = [self.tuned.get(f"{case}_p{i + 1}") for i in range(len(self.points))]
        return "/".join(f"{tuned.lr:g}" for tuned in own if tuned is not None) or "-"

    def _gap(self, case: str, points: Sequence[int]) -> PairedGain | None:
        return difference(self.runs[case], self.runs.get(REFERENCE, ()), points, self.split)

    def _rows_of(self, case: str) -> list[Row]:
        runs, split = self.runs[case], self.split

        def reached(name: str, pick: slice, **detail: Any) -> Row:
            accuracies = [float(np.mean(run.accuracies(split)[pick])) for run in runs]
            validation = [float(np.mean(run.validation[pick])) for run in runs]
            told = {"split": split, "validation": validation, **detail}
            return _mean_row(f"{case}/{name}/accuracy", accuracies, "fraction", **told)

        diverged = [run.seed for run in runs if run.is_diverged]
        rows = [
            reached(f"p{i + 1}", slice(i, i + 1), subnet_id=arch.subnet_id, macs=macs)
            for i, (arch, macs) in enumerate(self.points)
        ]
        more = {"diverged_seeds": diverged} if diverged else {}
        rows.append(reached("mean", slice(None), **more))
        return rows if case == REFERENCE else [*rows, *self._differences(case)]

    def _differences(self, case: str) -> list[Row]:
        every = range(len(self.points))
        picks = {**{f"p{i + 1}": [i] for i in every}, "mean": list(every)}
        rows: list[Row] = []
        for name, which in picks.items():
            gap = self._gap(case, which)
            if gap is not None:
                detail = {
                    "ci95": [gap.low, gap.high],
                    "seeds": gap.num_seeds,
                    "split": self.split,
                    "is_beyond_chance": gap.is_beyond_chance,
                }
                figure = f"training/{case}/{name}/over_{REFERENCE}"
                rows.append(row(figure, gap.value, "fraction", detail, digits=9))
        return rows


def _whole(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    return [run for run in runs if not run.is_diverged and run.cpu_s > 0]


def _rate(case: str, tuned: Tuned) -> Row:
    detail = {
        "validation": {f"{lr:g}": accuracy for lr, accuracy in tuned.tried.items()},
        "is_at_edge": tuned.is_at_edge,
    }
    return row(f"training/{case}/rate", tuned.lr, "1", detail)


def _mean_row(figure: str, values: list[float], unit: str, **detail: Any) -> Row:
    detail |= {"seeds": values}
    return row(f"training/{figure}", float(np.mean(values)), unit, detail, digits=9)


def _points(gap: PairedGain) -> str:
    return f"{gap.value * 100:+.1f} ({gap.low * 100:+.1f} to {gap.high * 100:+.1f})"
