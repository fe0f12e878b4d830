"""Accuracies over seeds: the teacher; subnets against the same shapes trained alone; the MLP rung.

Every cell is one training, kept in a journal, so a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serve.bench.graphs.cases import NodeCase, missing, node_case
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.graphs.recipes import digest_of, recipe_of
from serve.bench.graphs.shape_accuracies import alone_accuracies, shared_accuracies
from serve.bench.graphs.teacher_store import TeacherStore
from serve.bench.graphs.training_cells import TrainingCells
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from training.graphs.gcnii import accuracy_of

_Compared = dict[str, dict[str, float]]  # {"shared" or "alone": {subnet id: accuracy}}


class NodeAccuracies:
    """Trains what is missing of the cells asked for; rows are of what is there."""

    def __init__(
        self,
        journal: Journal,
        teachers: TeacherStore,
        *,
        seeds: int,
        graphs: Sequence[str],
        tell: Tell,
        steps: int | None = None,
    ):
        """`steps` shortens every training of subnets, for tests."""
        self._teachers, self._seeds, self._graphs, self._steps = teachers, seeds, graphs, steps
        there = [name for name in graphs if not missing(name)]
        self._cells = {
            part: TrainingCells(
                journal, [self._name(part, g, seed) for g in there for seed in range(seeds)], tell
            )
            for part in ("teacher", "subnets")
        }
        self._cases: dict[str, NodeCase] = {}

    def teacher(self) -> list[Row]:
        """The GCNII's accuracy on the test nodes, of each graph."""
        rows: list[Row] = []
        for name in self._graphs:
            if reason := missing(name):
                rows.append(_skipped(f"graphs/teacher/{name}", reason))
                continue
            found = [self._taught(name, seed) for seed in range(self._seeds)]
            interval = mean_interval(found)
            what = f"GCNII, {self._case(name).teacher.layers} layers of 64, public split"
            detail = {"what": what, **interval.detail()}
            rows.append(row(f"graphs/teacher/{name}", interval.mean, "accuracy", detail))
        return [*rows, self._cells["teacher"].core_time("graphs/teacher/core_time")]

    def subnets(self) -> list[Row]:
        """Subnets less the same shapes trained alone, by the same teacher and in as many steps."""
        rows: list[Row] = []
        means: list[float] = []
        alone_rungs: list[float] = []
        for name in self._graphs:
            if reason := missing(name):
                rows.append(_skipped(f"graphs/subnets/{name}", reason))
                continue
            cells = [self._cell(name, seed) for seed in range(self._seeds)]
            rows += _differences(name, cells)
            mlp, *others = cells[0]["shared"]
            alone_rungs += [_difference(cell, [mlp]) for cell in cells]
            each = [_difference(cell, others) for cell in cells]
            means += each
            rows.append(_points(f"graphs/subnets/{name}/mean", each, {"without": mlp}))
        if means:
            graphs = {"graphs": [name for name in self._graphs if not missing(name)]}
            rows.append(_points("graphs/subnets/mean", means, graphs))
            rows.append(_points("graphs/subnets/mlp", alone_rungs, graphs))
        return [*rows, self._cells["subnets"].core_time("graphs/subnets/core_time")]

    def _case(self, name: str) -> NodeCase:
        if name not in self._cases:
            self._cases[name] = node_case(name)
        return self._cases[name]

    def _taught(self, name: str, seed: int) -> float:
        def measure() -> float:
            case = self._case(name)
            return accuracy_of(self._teachers.logits(case, "gcnii", seed), case.whole, "test")

        return self._cells["teacher"].once(self._name("teacher", name, seed), measure)

    def _cell(self, name: str, seed: int) -> _Compared:
        return self._cells["subnets"].once(
            self._name("subnets", name, seed), lambda: self._compared(name, seed)
        )

    def _compared(self, name: str, seed: int) -> _Compared:
        case, recipe = self._case(name), recipe_of(name, self._steps)
        teacher = self._teachers.logits(case, recipe.teacher, seed)
        return {
            "shared": shared_accuracies(case, recipe.training, teacher, seed, "test"),
            "alone": alone_accuracies(case, recipe.training, teacher, seed, "test"),
        }

    def _name(self, part: str, graph: str, seed: int) -> str:
        of_recipe = f"/{digest_of(recipe_of(graph, self._steps))}" if part == "subnets" else ""
        return f"{part}/{graph}{of_recipe}/{seed}"


def _differences(name: str, cells: Sequence[_Compared]) -> list[Row]:
    rows: list[Row] = []
    for shape in cells[0]["shared"]:
        shared, alone = ([c[kind][shape] for c in cells] for kind in ("shared", "alone"))
        interval = paired(shared, alone)
        detail = {
            "shared": round(float(np.mean(shared)), 4),
            "alone": round(float(np.mean(alone)), 4),
            **interval.detail(),
        }
        figure = f"graphs/subnets/{name}/{shape}/shared_less_alone"
        rows.append(row(figure, 100 * interval.mean, "points", detail))
    return rows


def _difference(cell: _Compared, shapes: Sequence[str]) -> float:
    return float(np.mean([cell["shared"][s] - cell["alone"][s] for s in shapes]))


def _points(figure: str, differences: Sequence[float], detail: Mapping[str, object]) -> Row:
    interval = mean_interval(differences)
    said = {**detail, **interval.detail()}
    return row(f"{figure}/shared_less_alone", 100 * interval.mean, "points", said)


def _skipped(figure: str, reason: str) -> Row:
    return row(f"{figure}/skipped", 1, "runs", {"reason": reason}, digits=None)
