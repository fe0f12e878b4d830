"""What the subnets of a graph supernet are worth, and which are served.

Accuracies are at the draw of neighbours that a server has by default, on the validation nodes to
choose and on the test nodes to report. Costs are expected MACs over the graph's nodes, so that
`all` costs what this graph's degrees make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch

from supernet import Arch, ServedSubnet, SupernetDefinition
from supernet.graphs.expected_size import SizeExpectation
from training.evaluation.evaluate import pareto_of, uniform_archs, wilson_interval
from training.graphs.gcnii import accuracy_of
from training.graphs.node_trainer import WATCH_SEED, subnet_logits
from training.graphs.whole_graph import GraphDraw, WholeGraph

Progress = Callable[[int, int], None]


class MeasuredNodes(NamedTuple):
    """One subnet: its accuracies (fractions) and its expected MACs and parameters."""

    arch: Arch
    validation: float
    test: float
    macs: int
    params: int

    @property
    def accuracy(self) -> float:
        """What subnets are chosen by."""
        return self.validation


def measure_nodes(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    whole: WholeGraph,
    progress: Progress = lambda done, total: None,
) -> list[MeasuredNodes]:
    """Measure every uniform shape of the space and its ladder."""
    archs = uniform_archs(definition.space)
    draw, macs_of = GraphDraw(whole, WATCH_SEED), expected_macs(definition, whole)
    found: list[MeasuredNodes] = []
    for done, arch in enumerate(archs, start=1):
        logits = subnet_logits(state, definition, arch, whole, draw)
        validation, test = (accuracy_of(logits, whole, split) for split in ("validation", "test"))
        params = sum(torch.Size(s).numel() for s in definition.parameter_shapes(arch).values())
        found.append(MeasuredNodes(arch, validation, test, macs_of(arch), params))
        progress(done, len(archs))
    return found


def served_nodes(measured: Sequence[MeasuredNodes], whole: WholeGraph) -> tuple[ServedSubnet, ...]:
    """The front on the validation nodes, the cheapest subnet and the largest, ascending in MACs.

    The largest stays though another be as accurate here: it is the plain network on the whole
    graph, that others are compared with.
    """
    front = pareto_of(measured, lambda m: m.macs)
    ends = [min(measured, key=lambda m: m.macs), max(measured, key=lambda m: (m.macs, m.params))]
    kept = {m.arch: m for m in (*front, *ends)}
    num_test = len(whole.rows["test"])
    served = [
        ServedSubnet(
            arch=m.arch,
            accuracy=m.test,
            ci95=wilson_interval(round(m.test * num_test), num_test),
            macs=m.macs,
            params=m.params,
        )
        for m in kept.values()
    ]
    return tuple(sorted(served, key=lambda s: (s.macs, s.subnet_id)))


def expected_macs(definition: SupernetDefinition, whole: WholeGraph) -> Callable[[Arch], int]:
    """A function of archs: MACs of one node's query, expected over the nodes of the graph."""
    expectation = SizeExpectation(whole.graph)

    @cache
    def read(fanout: tuple[int, ...]) -> float:
        return float(expectation.at(fanout).nodes.mean()) if fanout else 1.0

    def macs_of(arch: Arch) -> int:
        shapes = definition.parameter_shapes(arch)
        total = float(torch.Size(shapes["head.weight"]).numel())
        depth = arch.depth[0]
        for layer in range(max(depth, 1)):
            name = f"blocks.{layer}" if layer else "first"
            written = read(arch.fanout[: max(depth - 1 - layer, 0)])
            matrices = [n for n in shapes if n.startswith(f"{name}.") and n.endswith(".weight")]
            total += written * sum(torch.Size(shapes[n]).numel() for n in matrices)
        return round(total)

    return macs_of
