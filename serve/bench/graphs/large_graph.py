"""The large generated graph, a supernet of random weights on it, and the rungs that are timed.

Times do not depend on the weights; accuracies of these rungs are given, in their order, so that
policies have something to choose by. Rows that use them say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from subnetact.nodes.node_executor import NodeExecutor
from supernet import Arch, Checkpoint, InputSpec, ServedSubnet, cost, define_supernet
from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs.generated import power_law
from supernet.graphs.graph_folder import GraphFolder
from supernet.graphs.graph_store import GraphDataError, GraphStore, open_graph

NUM_FEATURES, NUM_CLASSES, WIDTH = 128, 8, 256
RUNGS: dict[str, tuple[float, tuple[int, ...]]] = {
    "mlp-w16": (1 / 16, ()),
    "mlp": (1 / 4, ()),
    "5": (1 / 4, (5,)),
    "15": (1 / 4, (15,)),
    "5-5": (1 / 4, (5, 5)),
    "15-10": (1 / 4, (15, 10)),
    "25-10": (1 / 4, (25, 10)),
    "5-5-5": (1 / 4, (5, 5, 5)),
    "15-10-5": (1 / 4, (15, 10, 5)),
    "15-10-5-w256": (1.0, (15, 10, 5)),
    "25-25-25": (1 / 4, (25, 25, 25)),
    "25-25-25-w256": (1.0, (25, 25, 25)),
    "all-all": (1 / 4, (ALL_NEIGHBOURS, ALL_NEIGHBOURS)),
}
"""Rungs by name: part of the full width, 64 of 256 where the name does not say it, and the fan-out
of each hop."""
FULL = "all-all"
ASKED = "15-10"
_ACCURACIES = (0.55, 0.6, 0.66, 0.68, 0.72, 0.745, 0.75, 0.753, 0.757, 0.758, 0.76, 0.763, 0.77)


class LargeGraph(NamedTuple):
    """The graph as opened from its files, and a checkpoint whose subnets are the rungs."""

    graph: GraphStore
    checkpoint: Checkpoint
    subnet_ids: dict[str, str]

    def executor(self, max_batch_size: int, rungs: tuple[str, ...] = tuple(RUNGS)) -> NodeExecutor:
        """Return an executor of some rungs on one thread."""
        return NodeExecutor(
            self.checkpoint,
            graph=self.graph,
            threads=1,
            max_batch_size=max_batch_size,
            subnet_ids=[self.subnet_ids[name] for name in rungs],
        )


def large_graph(folder: Path, num_nodes: int, num_edges: int) -> LargeGraph:
    """Open the graph in `folder`, generating it if another or none is there."""
    wanted = power_law_source(num_nodes, num_edges)
    try:
        graph = open_graph(folder)
    except GraphDataError:
        graph = None
    if graph is None or graph.name != wanted:
        made = power_law(num_nodes=num_nodes, num_edges=num_edges, num_features=NUM_FEATURES)
        graph = made.save(folder)
    definition = define_supernet(
        "graph_sage",
        num_features=NUM_FEATURES,
        num_classes=NUM_CLASSES,
        width=WIDTH,
        width_choices=tuple(sorted({width for width, _ in RUNGS.values()})),
        fanout_choices=(5, 10, 15, 25, ALL_NEIGHBOURS),
    )
    archs = {
        name: Arch(resolution=1, depth=(len(fanout),), width=(width,), fanout=fanout)
        for name, (width, fanout) in RUNGS.items()
    }
    torch.manual_seed(0)
    subnets = tuple(
        ServedSubnet(arch=a, accuracy=acc, ci95=(0.0, 1.0), **cost(definition, a)._asdict())
        for a, acc in zip(archs.values(), _ACCURACIES, strict=True)
    )
    checkpoint = Checkpoint(
        name="large",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), kind="nodes"),
        state=definition.build().state_dict(),
        norm_statistics={},
        subnets=subnets,
        graph=GraphFolder(folder=folder, num_nodes=num_nodes, digest=""),
    )
    return LargeGraph(graph, checkpoint, {n: a.subnet_id for n, a in archs.items()})


def power_law_source(num_nodes: int, num_edges: int) -> str:
    """The name of the generated graph of that size."""
    return f"power-law-{num_nodes}-{num_edges}"
