"""`WholeGraph`: a graph as it is trained on, all nodes at once.

At a sampled fan-out every step draws its own neighbours, so that no weight is fitted to one draw;
at `all` a hop is the mean over all of them. Layers of `graph_sage` with mean aggregation run as
sparse products, features too (a bag of words has 1 % of entries): the same numbers as the family's
module on a `Neighbourhood` of all nodes, which is what other aggregators run on here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional as F

from supernet import Arch, SupernetDefinition
from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs.find_sampler import find_sampler
from supernet.graphs.graph_store import SPLITS, GraphDataError, GraphStore
from supernet.layers.neighbours import Hop, Neighbourhood
from training.graphs.sparse import SparseMatrix

Tensors = Mapping[str, torch.Tensor]
_LEVELS = 1 << 16


class Dropout:
    """Drops shares of features and of hidden states, drawn from one generator; at 0 nothing.

    A share is rounded to whole parts of 65,536: whole numbers of 16 bits are drawn five times as
    fast as torch draws by a rate, which was a quarter of a training.
    """

    def __init__(self, rate: float = 0.0, seed: int = 0):
        self.rate = round(rate * _LEVELS) / _LEVELS
        self.rng = np.random.Generator(np.random.SFC64(seed))

    def of(self, h: torch.Tensor) -> torch.Tensor:
        """Drop entries of (n, C)."""
        return h if self.rate == 0.0 else h * self._scale(h.shape)

    def of_features(self, features: SparseMatrix) -> SparseMatrix:
        """Drop entries of the features."""
        if self.rate == 0.0:
            return features
        return features.scaled(self._scale((features.num_entries,)))

    def _scale(self, shape: Sequence[int]) -> torch.Tensor:
        """Zeros at a share of the places, elsewhere what keeps the expectation."""
        drawn = self.rng.integers(0, _LEVELS, tuple(shape), dtype=np.uint16)
        kept = torch.from_numpy(drawn >= round(self.rate * _LEVELS))
        return kept.to(torch.float32).div_(1.0 - self.rate)


class WholeGraph:
    """Features, labels and splits of all nodes, and the means that layers take over neighbours."""

    def __init__(self, graph: GraphStore):
        """Raises GraphDataError for a graph without a split, or with nodes in one without label."""
        missing = [name for name in SPLITS if name not in graph.splits]
        if graph.labels is None or missing:
            lacks = "labels" if graph.labels is None else f"the split {', '.join(missing)}"
            raise GraphDataError(f"graph {graph.name!r} has no {lacks}: it can't be trained on")
        for name in SPLITS:
            _check_split(graph, graph.labels, name)
        self.graph = graph
        self.num_nodes = graph.num_nodes
        self.labels = torch.from_numpy(np.array(graph.labels, dtype=np.int64))
        self.rows = {n: torch.from_numpy(ids.astype(np.int64)) for n, ids in graph.splits.items()}
        self.features = SparseMatrix.of_dense(np.asarray(graph.features))

    @cached_property
    def propagation(self) -> SparseMatrix:
        """D^-1/2 (A + I) D^-1/2 of graph convolutions (Kipf and Welling, ICLR 2017)."""
        degrees = self.graph.degrees
        rows = np.repeat(np.arange(self.num_nodes), degrees)
        loops = np.arange(self.num_nodes)
        ends = np.concatenate([rows, loops]), np.concatenate([self.graph.indices, loops])
        order = np.lexsort((ends[1], ends[0]))
        rows, columns = ends[0][order], ends[1][order]
        scale = 1.0 / np.sqrt(degrees + 1.0)
        indptr = np.concatenate([[0], np.cumsum(degrees + 1)])
        return SparseMatrix.of(indptr, columns, scale[rows] * scale[columns], self.num_nodes)

    @cached_property
    def dense_features(self) -> torch.Tensor:
        """(nodes, F) float32."""
        return torch.from_numpy(np.array(self.graph.features))

    def hop(self, fanout: int, seed: int) -> Hop:
        """Each node's neighbours, drawn with `seed` where the fan-out is below its degree."""
        nodes = np.arange(self.num_nodes)
        indptr, indices = find_sampler().drawn_neighbours(self.graph, nodes, fanout, seed)
        return Hop(torch.from_numpy(indptr), torch.from_numpy(indices))


def _check_split(graph: GraphStore, labels: np.ndarray, name: str) -> None:
    """Raise GraphDataError for a split that has no nodes, or one whose class is not known."""
    nodes, most = graph.splits[name], len(graph.classes) - 1
    if not len(nodes):
        raise GraphDataError(f"graph {graph.name!r}: no node is in the split {name}")
    found = labels[nodes]
    wrong = np.flatnonzero((found < 0) | (found > most))
    if len(wrong):
        at = wrong[0]
        raise GraphDataError(
            f"graph {graph.name!r}: node {nodes[at]} of the split {name} has label {found[at]}, "
            f"allowed 0 to {most} ({len(wrong)} such nodes)"
        )


class GraphDraw:
    """The hops of one step, by fan-out, each drawn once when it is first asked for."""

    def __init__(self, whole: WholeGraph, seed: int):
        self._whole, self._seed = whole, seed
        self._hops: dict[int, Hop] = {}
        self._means: dict[int, SparseMatrix] = {}

    def hop(self, fanout: int) -> Hop:
        """See `WholeGraph.hop`."""
        if fanout not in self._hops:
            self._hops[fanout] = self._whole.hop(fanout, self._seed)
        return self._hops[fanout]

    def mean(self, fanout: int) -> SparseMatrix:
        """(n, n): takes (n, C) to the means over drawn neighbours."""
        if fanout not in self._means:
            indptr, indices = (part.numpy() for part in self.hop(fanout))
            counts = np.diff(indptr)
            values = np.repeat(1.0 / np.maximum(counts, 1), counts)
            self._means[fanout] = SparseMatrix.of(indptr, indices, values, self._whole.num_nodes)
        return self._means[fanout]

    def anew(self, seed: int) -> GraphDraw:
        """Another draw; what does not depend on it is kept."""
        other = GraphDraw(self._whole, seed)
        if ALL_NEIGHBOURS in self._hops:
            other._hops[ALL_NEIGHBOURS] = self._hops[ALL_NEIGHBOURS]
        if ALL_NEIGHBOURS in self._means:
            other._means[ALL_NEIGHBOURS] = self._means[ALL_NEIGHBOURS]
        return other


def node_logits(
    whole: WholeGraph,
    definition: SupernetDefinition,
    arch: Arch,
    weights: Tensors,
    draw: GraphDraw,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """(nodes, num_classes) logits of a subnet whose parameters are `weights`, at every node."""
    dropout = dropout or Dropout()
    config: Any = definition.config
    if config.aggregator != "mean":
        hops = tuple(draw.hop(fanout) for fanout in arch.fanout)
        inputs = Neighbourhood(dropout.of(whole.dense_features), hops)
        return functional_call(definition.on_meta(arch), dict(weights), (inputs,))
    features = dropout.of_features(whole.features)
    h = features.product(weights["first.own.weight"].T) + weights["first.own.bias"]
    # The hops are listed from the asked node outwards; the first layer reads the outermost.
    means = [draw.mean(fanout) for fanout in reversed(arch.fanout)]
    if means:
        h = h + means[0].product(features.product(weights["first.neighbours.weight"].T))
    h = F.relu(h)
    for i, mean in enumerate(means[1:], start=1):
        read = dropout.of(h)
        own = F.linear(read, weights[f"blocks.{i}.own.weight"], weights[f"blocks.{i}.own.bias"])
        gathered = F.linear(mean.product(read), weights[f"blocks.{i}.neighbours.weight"])
        h = h + F.relu(own + gathered)
    return F.linear(dropout.of(h), weights["head.weight"], weights["head.bias"])
