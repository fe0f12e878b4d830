"""The graphs that accuracies are measured on: Cora and Citeseer if there, and one generated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from supernet import SupernetDefinition, define_supernet
from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs.convert import read_planetoid
from supernet.graphs.generated import heterophilous
from training.graphs.gcnii import GcniiOptions
from training.graphs.load_graph import DATA_DIR
from training.graphs.whole_graph import WholeGraph

PUBLISHED = ("cora", "citeseer")
GENERATED = "heterophilous"
_FANOUTS = {"cora": (2, 5), "citeseer": (2, 5), GENERATED: (3, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCase:
    """A graph, the supernet on it and its teacher."""

    name: str
    whole: WholeGraph
    definition: SupernetDefinition
    teacher: GcniiOptions


def missing(name: str) -> str:
    """Return why a graph is not there, empty where it is."""
    if name == GENERATED:
        return ""
    root = os.environ.get(DATA_DIR)
    if not root:
        return f"{DATA_DIR} is not set"
    path = Path(root) / "planetoid" / f"{name}.npz"
    return "" if path.exists() else f"{path}: no such file"


def node_case(name: str) -> NodeCase:
    """Load or generate one. Raises GraphDataError, or ValueError for a name that is not known."""
    if name not in _FANOUTS:
        raise ValueError(f"graph is {name!r}, allowed {', '.join(_FANOUTS)}")
    if name == GENERATED:
        graph = heterophilous()
    else:
        root = os.environ.get(DATA_DIR, "")
        graph = read_planetoid(Path(root) / "planetoid" / f"{name}.npz")
    definition = define_supernet(
        "graph_sage",
        num_features=graph.num_features,
        num_classes=len(graph.classes),
        degree=max(1, round(float(graph.degrees.mean()))),
        fanout_choices=(*_FANOUTS[name], ALL_NEIGHBOURS),
    )
    # As published: stronger dropout on Citeseer; little decay, which smooths, where neighbours
    # are of other classes.
    dropout = {"cora": 0.6, "citeseer": 0.7, GENERATED: 0.5}[name]
    teacher = GcniiOptions(layers=8, dropout=dropout)
    return NodeCase(name=name, whole=WholeGraph(graph), definition=definition, teacher=teacher)
