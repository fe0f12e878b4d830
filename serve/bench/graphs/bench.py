"""`supernet bench graphs`: which parts run, and in which size.

Trainings are kept in a journal in the output folder, cell by cell, and teachers and the large graph
beside it; the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serve.bench.graphs.accuracies import NodeAccuracies
from serve.bench.graphs.cases import GENERATED, PUBLISHED
from serve.bench.graphs.distillation import Distillation
from serve.bench.graphs.large_graph import LargeGraph, large_graph
from serve.bench.graphs.settings import SettingsSearch
from serve.bench.graphs.skewed import SkewedTrace
from serve.bench.graphs.speed import NodeSpeed
from serve.bench.graphs.teacher_store import TeacherStore
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell

DEFAULT_PARTS = ("speed", "sizes", "peers", "work", "teacher", "subnets", "distillation")
PARTS = (*DEFAULT_PARTS, "settings")
GRAPHS = (*PUBLISHED, GENERATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSize:
    """How much of everything; `steps` shortens every supernet's training, for tests."""

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
    settings_seeds: int = 2
    graphs: tuple[str, ...] = GRAPHS
    steps: int | None = None


QUICK = BenchSize()
FULL = BenchSize(rounds=2000, teacher_seeds=10, subnet_seeds=20, student_seeds=50, settings_seeds=5)


class GraphsBench:
    """Runs parts and returns their rows."""

    def __init__(self, out: Path, size: BenchSize, *, tell: Tell = lambda text: None):
        """The journal, the teachers and the large graph are kept in `out`."""
        self._out, self._size, self._tell = out, size, tell
        # What else a cell depends on, its name says: the graph, the recipe, the seed.
        self._journal = Journal(out / "journal.jsonl", {"format": 2})
        self._teachers = TeacherStore(out / "teachers")

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Run some parts, by default all but the search for settings.

        Raises ValueError listing the parts, or the graphs, that there are.
        """
        wanted = DEFAULT_PARTS if parts is None else tuple(parts)
        size = self._size
        for what, given, known in (("part", wanted, PARTS), ("graph", size.graphs, GRAPHS)):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"{what} is {unknown[0]!r}, allowed {', '.join(known)}")
        published = tuple(name for name in PUBLISHED if name in size.graphs)
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
            "teacher": lambda: self._accuracies(size.teacher_seeds, published).teacher(),
            "subnets": lambda: self._accuracies(size.subnet_seeds, size.graphs).subnets(),
            "distillation": lambda: Distillation(
                self._journal, seeds=size.student_seeds, tell=self._tell
            ).rows(published),
            "settings": lambda: SettingsSearch(
                self._journal, self._teachers, **self._trained(size.settings_seeds, size.graphs)
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
        return NodeAccuracies(self._journal, self._teachers, **self._trained(seeds, graphs))

    def _trained(self, seeds: int, graphs: Sequence[str]) -> dict[str, Any]:
        steps = self._size.steps
        return {"seeds": seeds, "graphs": graphs, "tell": self._tell, "steps": steps}
