"""Recipes of training compared on validation nodes, over seeds: what `recipes.CHOSEN` rests on.

A recipe's figure is the mean validation accuracy of the shapes that the part `subnets` compares,
all from one supernet; test nodes are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from serve.bench.graphs.cases import NodeCase, missing, node_case
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.graphs.recipes import CHOSEN, RECIPES, TRIED, Recipe, digest_of, shortened
from serve.bench.graphs.shape_accuracies import shared_accuracies
from serve.bench.graphs.teacher_store import TeacherStore
from serve.bench.graphs.training_cells import TrainingCells
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row


class SettingsSearch:
    """Trains the supernets that are missing; rows are of what is there."""

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
        """`steps` shortens every training, for tests."""
        self._teachers, self._seeds, self._steps = teachers, seeds, steps
        self._graphs = [name for name in graphs if not missing(name)]
        self._cells = TrainingCells(
            journal,
            [self._name(g, r, s) for g in self._graphs for s in range(seeds) for r in TRIED[g]],
            tell,
        )

    def rows(self) -> list[Row]:
        """Validation accuracies of all recipes, and their differences to the chosen one."""
        made: list[Row] = []
        for name in self._graphs:
            made += self._table(node_case(name))
        return [*made, self._cells.core_time("graphs/settings/core_time")]

    def _table(self, case: NodeCase) -> list[Row]:
        graph = case.name
        found: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in TRIED[graph]}
        for seed in range(self._seeds):  # seed by seed: a stopped search has tried all recipes
            for name, cells in found.items():
                measure = partial(self._measured, case, self._recipe(name), seed)
                cells.append(self._cells.once(self._name(graph, name, seed), measure))
        means = {n: [float(np.mean(list(c.values()))) for c in cells] for n, cells in found.items()}
        chosen = CHOSEN[graph]
        rows: list[Row] = []
        for name, cells in found.items():
            interval = mean_interval(means[name])
            shapes = {s: round(float(np.mean([c[s] for c in cells])), 4) for s in cells[0]}
            detail = {"on": "validation", "shapes": shapes, **interval.detail()}
            figure = f"graphs/settings/{graph}/{name}"
            rows.append(row(figure, interval.mean, "accuracy", detail))
            if name != chosen:
                difference = paired(means[name], means[chosen])
                figure = f"{figure}_less_{chosen}"
                rows.append(row(figure, 100 * difference.mean, "points", difference.detail()))
        return rows

    def _measured(self, case: NodeCase, recipe: Recipe, seed: int) -> dict[str, float]:
        teacher = self._teachers.logits(case, recipe.teacher, seed)
        return shared_accuracies(case, recipe.training, teacher, seed, "validation")

    def _recipe(self, name: str) -> Recipe:
        return RECIPES[name] if self._steps is None else shortened(RECIPES[name], self._steps)

    def _name(self, graph: str, recipe: str, seed: int) -> str:
        return f"settings/{graph}/{recipe}-{digest_of(self._recipe(recipe))}/{seed}"
