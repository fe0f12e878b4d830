"""`supernet bench graphs`: which parts run, and in which size.

Trainings are kept in a journal in the output folder, cell by cell, and the large graph beside it;
the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from serve.bench.graphs.accuracies import NodeAccuracies
from serve.bench.graphs.cases import GENERATED, PUBLISHED, REGULARISATION
from serve.bench.graphs.distillation import Distillation
from serve.bench.graphs.large_graph import LargeGraph, large_graph
from serve.bench.graphs.skewed import SkewedTrace
from serve.bench.graphs.speed import NodeSpeed
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell

PARTS = ("speed", "sizes", "peers", "work", "teacher", "subnets", "distillation")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSize:
    """How much of everything; `steps` are those of a supernet's training."""

    num_nodes: int = 1_000_000
    num_edges: int = 8_000_000
    rounds: int = 300
    sized: int = 10_000
    repeats: int = 15
    simulated_s: float = 60.0
    live_s: float = 10.0
    teacher_seeds: int = 3
    subnet_seeds: int = 2
    student_seeds: int = 5
    steps: int = 600


QUICK = BenchSize()
FULL = BenchSize(rounds=2000, teacher_seeds=10, subnet_seeds=20, student_seeds=50)


class GraphsBench:
    """Runs parts and returns their rows."""

    def __init__(self, out: Path, size: BenchSize, *, tell: Tell = lambda text: None):
        """The journal and the large graph are kept in `out`."""
        self._out, self._size, self._tell = out, size, tell
        # Seeds may be added later; everything else makes other cells.
        settings = {"steps": size.steps, "regularisation": REGULARISATION}
        self._journal = Journal(out / "journal.jsonl", settings)

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Run some parts, all by default. Raises ValueError listing those there are."""
        wanted = PARTS if parts is None else tuple(parts)
        unknown = sorted(set(wanted) - set(PARTS))
        if unknown:
            raise ValueError(f"part is {unknown[0]!r}, allowed {', '.join(PARTS)}")
        size = self._size
        run: dict[str, Callable[[], list[Row]]] = {
            "speed": lambda: self._speed.rungs(),
            "sizes": lambda: self._speed.sizes(),
            "peers": lambda: self._speed.peers(),
            "work": lambda: SkewedTrace(
                self._large,
                repeats=size.repeats,
                simulated_s=size.simulated_s,
                live_s=size.live_s,
                tell=self._tell,
            ).rows(),
            "teacher": lambda: self._accuracies(size.teacher_seeds, PUBLISHED).teacher(),
            "subnets": lambda: self._accuracies(
                size.subnet_seeds, (*PUBLISHED, GENERATED)
            ).subnets(),
            "distillation": lambda: Distillation(
                self._journal, seeds=size.student_seeds, tell=self._tell
            ).rows(),
        }
        return [made for part in PARTS if part in wanted for made in run[part]()]

    @cached_property
    def _large(self) -> LargeGraph:
        self._tell(f"a graph of {self._size.num_nodes:,} nodes")
        return large_graph(self._out / "graph", self._size.num_nodes, self._size.num_edges)

    @cached_property
    def _speed(self) -> NodeSpeed:
        size = self._size
        return NodeSpeed(self._large, rounds=size.rounds, sized=size.sized, tell=self._tell)

    def _accuracies(self, seeds: int, graphs: Sequence[str]) -> NodeAccuracies:
        return NodeAccuracies(
            self._journal, seeds=seeds, graphs=graphs, steps=self._size.steps, tell=self._tell
        )
