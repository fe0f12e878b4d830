"""Layer-pair distillation put to the test: six ways to teach one student, paired by seed.

Soft outputs and hidden states have small gradients, which the decay and dropout of a network that
learns from labels drown; so each way has its own, chosen on validation nodes and on seeds that the
figures are not of. Students of a seed start from the same weights and differ in what they learn
from; the teacher is one of five, by seed. A way's figure is its difference to logit distillation
with a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from serve.bench.graphs.cases import PUBLISHED, NodeCase, missing, node_case
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.graphs.training_cells import TrainingCells
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from training.graphs.gcnii import train_gcnii
from training.graphs.student import WAYS, StudentOptions, Teacher, Way, num_parameters, teach

_NUM_TEACHERS = 5
_AGAINST: Way = "logits"
TUNING_SEEDS = (1000, 1001, 1002)


class StudentSetting(NamedTuple):
    """A student's dropout, and its decay over the published one."""

    dropout: float
    decay: float

    def __str__(self) -> str:
        return f"dropout{self.dropout:g}-decay{self.decay:g}"


STUDENT_SETTINGS = tuple(
    StudentSetting(dropout, decay) for dropout in (0.0, 0.1, 0.3) for decay in (1.0, 0.1, 0.0)
)
"""What each way is tried with."""


class Distillation:
    """Trains the students that are missing; rows are of what is there."""

    def __init__(
        self,
        journal: Journal,
        *,
        seeds: int,
        tell: Tell,
        epochs: int | None = None,
        settings: Sequence[StudentSetting] = STUDENT_SETTINGS,
    ):
        """`epochs` shortens every training, for tests."""
        self._journal, self._seeds, self._tell = journal, seeds, tell
        self._settings = tuple(settings)
        self._options = StudentOptions()
        if epochs is not None:
            size = replace(self._options.size, epochs=epochs)
            self._options = replace(self._options, size=size)
        self._epochs = epochs

    def rows(self, graphs: Sequence[str] = PUBLISHED) -> list[Row]:
        """Return the table of each graph, training what is missing of it."""
        made: list[Row] = []
        for name in graphs:
            if reason := missing(name):
                figure = f"graphs/distillation/{name}/skipped"
                made.append(row(figure, 1, "runs", {"reason": reason}, digits=None))
            else:
                made += self._table(name)
        return made

    def _table(self, graph: str) -> list[Row]:
        student = self._student(node_case(graph))
        tried = TrainingCells(
            self._journal,
            [
                _name(graph, way, setting, seed)
                for way in WAYS
                for setting in self._settings
                for seed in TUNING_SEEDS
            ],
            self._tell,
        )
        chosen: dict[Way, StudentSetting] = {}
        for way in WAYS:
            figures: dict[StudentSetting, float] = {}
            for setting in self._settings:
                cells = [
                    tried.once(_name(graph, way, setting, seed), student(way, setting, seed))
                    for seed in TUNING_SEEDS
                ]
                figures[setting] = float(np.mean([cell["validation"] for cell in cells]))
            chosen[way] = max(figures, key=lambda setting: figures[setting])
        names = [_name(graph, w, s, seed) for seed in range(self._seeds) for w, s in chosen.items()]
        cells = TrainingCells(self._journal, names, self._tell)
        made: dict[Way, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for seed in range(self._seeds):
            for way, setting in chosen.items():
                name = _name(graph, way, setting, seed)
                made[way].append(cells.once(name, student(way, setting, seed)))
        figure = f"graphs/distillation/{graph}"
        return [
            *_rows_of(graph, made, chosen),
            tried.core_time(f"{figure}/tuning_core_time"),
            cells.core_time(f"{figure}/core_time"),
        ]

    def _student(
        self, case: NodeCase
    ) -> Callable[[Way, StudentSetting, int], Callable[[], dict[str, Any]]]:
        """Return what trains a student of a graph, by way, setting and seed."""
        teacher = cache(lambda number: self._teacher(case, number))
        num_classes = case.definition.config.num_classes

        def trained(way: Way, setting: StudentSetting, seed: int) -> dict[str, Any]:
            shown, size = teacher(seed % _NUM_TEACHERS), self._options.size
            size = replace(size, dropout=setting.dropout, decay_factor=setting.decay)
            options = replace(self._options, size=size)
            return {
                **teach(case.whole, shown, way, seed, options)._asdict(),
                "teacher_parameters": shown.num_parameters,
                "parameters": num_parameters(case.whole, num_classes, options),
            }

        return lambda way, setting, seed: partial(trained, way, setting, seed)

    def _teacher(self, case: NodeCase, number: int) -> Teacher:
        size = case.teacher if self._epochs is None else replace(case.teacher, epochs=self._epochs)
        net = train_gcnii(case.whole, case.definition.config.num_classes, size, number)
        return Teacher.of(net, case.whole)


def _name(graph: str, way: Way, setting: StudentSetting, seed: int) -> str:
    return f"distillation/{graph}/{way}/{setting}/{seed}"


def _rows_of(
    name: str, cells: dict[Way, list[dict[str, Any]]], chosen: dict[Way, StudentSetting]
) -> list[Row]:
    first = cells[_AGAINST][0]
    compression = first["teacher_parameters"] / first["parameters"]
    made = [
        row(f"graphs/distillation/{name}/compression", compression, "x", first, digits=2),
    ]
    against = [cell["test"] for cell in cells[_AGAINST]]
    for way, theirs in cells.items():
        figures = [cell["test"] for cell in theirs]
        interval = mean_interval(figures)
        detail: dict[str, Any] = {**interval.detail(), "setting": str(chosen[way])}
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
