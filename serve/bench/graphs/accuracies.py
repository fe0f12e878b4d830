"""Accuracies over seeds: the teacher; subnets against the same shapes trained alone; the MLP rung.

Every cell is one training, kept in a journal, so a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from serve.bench.graphs.cases import REGULARISATION, NodeCase, missing, node_case
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.graphs.training_cells import TrainingCells
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from supernet import Arch
from supernet.spec import parse_arch
from training.graphs.gcnii import accuracy_of, train_gcnii
from training.graphs.node_trainer import WATCH_SEED, NodeTrainer, NodeTraining, subnet_logits
from training.graphs.whole_graph import Dropout, GraphDraw

SHAPES = ("d=0", "d=1,w=0.5", "d=2,w=0.5,f={few}", "d=2", "d=3")
"""Subnets that are compared; `few` is the graph's second fan-out."""
_TRAINING = NodeTraining(steps=600, random_subnets=2)


class NodeAccuracies:
    """Trains what is missing of the cells asked for; rows are of what is there."""

    def __init__(
        self, journal: Journal, *, seeds: int, graphs: Sequence[str], steps: int, tell: Tell
    ):
        self._seeds, self._graphs = seeds, graphs
        there = [name for name in graphs if not missing(name)]
        self._cells = {
            part: TrainingCells(
                journal, [f"{part}/{g}/{seed}" for g in there for seed in range(seeds)], tell
            )
            for part in ("teacher", "subnets")
        }
        self._training = replace(_TRAINING, steps=steps)
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
        for name in self._graphs:
            if reason := missing(name):
                rows.append(_skipped(f"graphs/subnets/{name}", reason))
                continue
            cells = [self._cell(name, seed) for seed in range(self._seeds)]
            shapes = list(cells[0]["shared"])
            for shape in shapes:
                shared, alone = ([c[kind][shape] for c in cells] for kind in ("shared", "alone"))
                interval = paired(shared, alone)
                detail = {
                    "shared": round(float(np.mean(shared)), 4),
                    "alone": round(float(np.mean(alone)), 4),
                    **interval.detail(),
                }
                figure = f"graphs/subnets/{name}/{shape}/shared_less_alone"
                rows.append(row(figure, 100 * interval.mean, "points", detail))
            each = [
                np.mean([c["shared"][s] - c["alone"][s] for s in shapes[1:]]).item() for c in cells
            ]
            interval = mean_interval(each)
            figure = f"graphs/subnets/{name}/mean/shared_less_alone"
            detail = {"without": shapes[0], **interval.detail()}
            rows.append(row(figure, 100 * interval.mean, "points", detail))
        return [*rows, self._cells["subnets"].core_time("graphs/subnets/core_time")]

    def _case(self, name: str) -> NodeCase:
        if name not in self._cases:
            self._cases[name] = node_case(name)
        return self._cases[name]

    def _taught(self, name: str, seed: int) -> float:
        def measure() -> float:
            return accuracy_of(self._teacher(name, seed), self._case(name).whole, "test")

        return self._cells["teacher"].once(f"teacher/{name}/{seed}", measure)

    @torch.no_grad()
    def _teacher(self, name: str, seed: int) -> torch.Tensor:
        case = self._case(name)
        with torch.enable_grad():
            net = train_gcnii(case.whole, case.definition.config.num_classes, case.teacher, seed)
        return net(case.whole, Dropout())

    def _cell(self, name: str, seed: int) -> dict[str, dict[str, float]]:
        return self._cells["subnets"].once(
            f"subnets/{name}/{seed}", lambda: self._compared(name, seed)
        )

    def _compared(self, name: str, seed: int) -> dict[str, dict[str, float]]:
        case = self._case(name)
        teacher = self._teacher(name, seed)
        few = case.definition.space.fanout[1]
        archs = [parse_arch(t.format(few=few), case.definition.space) for t in SHAPES]
        decay, dropout = REGULARISATION[name]
        training = replace(self._training, seed=seed, weight_decay=decay, dropout=dropout)
        state = NodeTrainer(case.definition, case.whole, training, teacher).run()
        shared = {a.subnet_id: self._accuracy(case, state, a) for a in archs}
        alone: dict[str, float] = {}
        for arch in archs:
            single = replace(training, alone=arch)
            mine = NodeTrainer(case.definition, case.whole, single, teacher).run()
            alone[arch.subnet_id] = self._accuracy(case, mine, arch)
        return {"shared": shared, "alone": alone}

    def _accuracy(self, case: NodeCase, state: dict[str, torch.Tensor], arch: Arch) -> float:
        draw = GraphDraw(case.whole, WATCH_SEED)
        logits = subnet_logits(state, case.definition, arch, case.whole, draw)
        return accuracy_of(logits, case.whole, "test")


def _skipped(figure: str, reason: str) -> Row:
    return row(f"{figure}/skipped", 1, "runs", {"reason": reason}, digits=None)
