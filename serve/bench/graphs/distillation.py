"""Layer-pair distillation put to the test: six ways to teach one student, paired by seed.

Students of a seed start from the same weights and differ in what they learn from; the teacher is
one of five, by seed. A way's figure is its difference to logit distillation with a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from serve.bench.graphs.cases import PUBLISHED, NodeCase, missing, node_case
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.graphs.training_cells import TrainingCells
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from training.graphs.gcnii import train_gcnii
from training.graphs.student import WAYS, StudentOptions, Teacher, Way, num_parameters, teach

_NUM_TEACHERS = 5
_AGAINST: Way = "logits"


class Distillation:
    """Trains the students that are missing; rows are of what is there."""

    def __init__(self, journal: Journal, *, seeds: int, tell: Tell, epochs: int | None = None):
        """`epochs` shortens every training, for tests."""
        self._journal, self._seeds, self._tell = journal, seeds, tell
        self._options = StudentOptions()
        if epochs is not None:
            size = replace(self._options.size, epochs=epochs)
            self._options = replace(self._options, size=size)
        self._epochs = epochs

    def rows(self, graphs: Sequence[str] = PUBLISHED) -> list[Row]:
        """Return the table of each graph, training what is missing of it."""
        made: list[Row] = []
        there = [name for name in graphs if not missing(name)]
        cells = TrainingCells(
            self._journal,
            [_name(g, way, seed) for g in there for seed in range(self._seeds) for way in WAYS],
            self._tell,
        )
        for name in graphs:
            if reason := missing(name):
                figure = f"graphs/distillation/{name}/skipped"
                made.append(row(figure, 1, "runs", {"reason": reason}, digits=None))
                continue
            made += self._table(name, cells)
        return [*made, cells.core_time("graphs/distillation/core_time")]

    def _table(self, name: str, cells: TrainingCells) -> list[Row]:
        case = node_case(name)
        teacher = cache(lambda number: self._teacher(case, number))

        def student(way: Way, seed: int) -> dict[str, Any]:
            shown = teacher(seed % _NUM_TEACHERS)
            num_classes = case.definition.config.num_classes
            return {
                **teach(case.whole, shown, way, seed, self._options)._asdict(),
                "teacher_parameters": shown.num_parameters,
                "parameters": num_parameters(case.whole, num_classes, self._options),
            }

        made: dict[Way, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for seed in range(self._seeds):
            for way in WAYS:
                measure = partial(student, way, seed)
                made[way].append(cells.once(_name(name, way, seed), measure))
        return _rows_of(name, made)

    def _teacher(self, case: NodeCase, number: int) -> Teacher:
        size = case.teacher if self._epochs is None else replace(case.teacher, epochs=self._epochs)
        net = train_gcnii(case.whole, case.definition.config.num_classes, size, number)
        return Teacher.of(net, case.whole)


def _name(graph: str, way: Way, seed: int) -> str:
    return f"distillation/{graph}/{way}/{seed}"


def _rows_of(name: str, cells: dict[Way, list[dict[str, Any]]]) -> list[Row]:
    first = cells[_AGAINST][0]
    compression = first["teacher_parameters"] / first["parameters"]
    made = [
        row(f"graphs/distillation/{name}/compression", compression, "x", first, digits=2),
    ]
    against = [cell["test"] for cell in cells[_AGAINST]]
    for way, theirs in cells.items():
        figures = [cell["test"] for cell in theirs]
        interval = mean_interval(figures)
        detail: dict[str, Any] = interval.detail()
        for what in ("spread", "entropy"):
            known = [cell[what] for cell in theirs if cell[what] is not None]
            if known:
                detail[f"least_{what}"] = round(min(known), 4)
        made.append(row(f"graphs/distillation/{name}/{way}", interval.mean, "accuracy", detail))
        if way != _AGAINST:
            difference = paired(figures, against)
            figure = f"graphs/distillation/{name}/{way}_less_{_AGAINST}"
            made.append(row(figure, 100 * difference.mean, "points", difference.detail()))
    return made
