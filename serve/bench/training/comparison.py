"""Rows and a table of finished runs: what each case reached, and its difference from the reference.

Runs of one seed saw the same split and are measured on the same test images, so cases are compared
in pairs. The interval of a difference has two parts that are independent: another seed would give
other weights (Student's t over the seeds' differences), and other test images other answers (the
images on which the two differ, McNemar).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.bench.rows import Row, row
from serve.bench.training.cases import REFERENCE
from serve.bench.training.timed_run import FinishedRun
from supernet import Arch
from traces.simulation.cells import estimate
from training.evaluation.domination import paired_difference


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
    runs: Sequence[FinishedRun], reference: Sequence[FinishedRun], points: Sequence[int]
) -> PairedGain | None:
    """Compare the mean accuracy over `points` of runs with the same seeds; None without a pair."""
    of_seed = {run.seed: run for run in reference}
    pairs = [(run, of_seed[run.seed]) for run in runs if run.seed in of_seed]
    if not pairs:
        return None
    which = list(points)
    mine, theirs = (
        np.stack([run.hits[which].mean(axis=0) for run in side])  # (seeds, test samples)
        for side in zip(*pairs, strict=True)
    )
    by_seed = estimate((mine - theirs).mean(axis=1).tolist())
    value, (low, high) = paired_difference(mine.mean(axis=0), theirs.mean(axis=0))
    half = math.hypot(by_seed.half_width, (high - low) / 2)
    return PairedGain(value, value - half, value + half, len(pairs))


def rows_of(
    runs: Mapping[str, Sequence[FinishedRun]],
    tuned: Mapping[str, Tuned],
    points: Sequence[tuple[Arch, int]],
    budget_s: float,
) -> list[Row]:
    """Rows of every case with a finished run; `points` are archs with their MACs."""
    return [
        one
        for case, mine in runs.items()
        if mine
        for one in (
            *_accuracies(case, mine, points),
            _mean_row(f"{case}/cpu", [r.cpu_s for r in mine], "s", steps=mine[0].steps,
                      aimed_at_s=round(budget_s, 1)),
            *([_rate(case, tuned[case])] if case in tuned else []),
            *_differences(case, mine, runs.get(REFERENCE, ()), len(points)),
        )
    ]  # fmt: skip


def table_of(
    runs: Mapping[str, Sequence[FinishedRun]],
    tuned: Mapping[str, Tuned],
    points: Sequence[tuple[Arch, int]],
) -> str:
    """A table in Markdown: test accuracies in per cent, means over the seeds."""
    sizes = [f"{macs / 1e6:.1f} M" for _, macs in points]
    head = ["case", "rate", *sizes, "mean", f"less {REFERENCE} (95 %)", "core s"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for case, mine in runs.items():
        if mine:
            reached = np.mean([run.test for run in mine], axis=0) * 100
            gap = difference(mine, runs.get(REFERENCE, ()), range(len(points)))
            lines.append(
                [
                    case,
                    f"{tuned[case].lr:g}" if case in tuned else "-",
                    *(f"{value:.1f}" for value in reached),
                    f"{reached.mean():.1f}",
                    "" if gap is None or case == REFERENCE else _points(gap),
                    f"{np.mean([run.cpu_s for run in mine]):.0f}",
                ]
            )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _accuracies(
    case: str, runs: Sequence[FinishedRun], points: Sequence[tuple[Arch, int]]
) -> list[Row]:
    rows = [
        _mean_row(
            f"{case}/p{i + 1}/accuracy",
            [run.test[i] for run in runs],
            "fraction",
            validation=[run.validation[i] for run in runs],
            subnet_id=arch.subnet_id,
            macs=macs,
        )
        for i, (arch, macs) in enumerate(points)
    ]
    means = [float(np.mean(run.test)) for run in runs]
    validation = [float(np.mean(run.validation)) for run in runs]
    diverged = [run.seed for run in runs if run.is_diverged]
    more = {"diverged_seeds": diverged} if diverged else {}
    return [
        *rows,
        _mean_row(f"{case}/mean/accuracy", means, "fraction", validation=validation, **more),
    ]


def _rate(case: str, tuned: Tuned) -> Row:
    detail = {
        "validation": {f"{lr:g}": accuracy for lr, accuracy in tuned.tried.items()},
        "is_at_edge": tuned.is_at_edge,
    }
    return row(f"training/{case}/rate", tuned.lr, "1", detail)


def _differences(
    case: str, runs: Sequence[FinishedRun], reference: Sequence[FinishedRun], num_points: int
) -> list[Row]:
    if case == REFERENCE:
        return []
    picks = {**{f"p{i + 1}": [i] for i in range(num_points)}, "mean": list(range(num_points))}
    rows: list[Row] = []
    for name, which in picks.items():
        gap = difference(runs, reference, which)
        if gap is not None:
            detail = {
                "ci95": [gap.low, gap.high],
                "seeds": gap.num_seeds,
                "is_beyond_chance": gap.is_beyond_chance,
            }
            figure = f"training/{case}/{name}/over_{REFERENCE}"
            rows.append(row(figure, gap.value, "fraction", detail, digits=9))
    return rows


def _mean_row(figure: str, values: list[float], unit: str, **detail: Any) -> Row:
    detail |= {"seeds": values}
    return row(f"training/{figure}", float(np.mean(values)), unit, detail, digits=9)


def _points(gap: PairedGain) -> str:
    return f"{gap.value * 100:+.1f} ({gap.low * 100:+.1f} to {gap.high * 100:+.1f})"
