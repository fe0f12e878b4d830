"""How much a node's query will read, foretold from degrees before anything is sampled.

After the probabilistic sampled size of Quiver (Tan et al., 2023): what is drawn from a node's list
has, on average, the mean of what its neighbours would read. Each hop costs one pass over the edges
when the table is made, and a look-up when a query arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from supernet.graphs.graph_store import GraphStore

_LOOKED_AT = 20_000  # edges of which the reciprocal share is estimated


class ExpectedSizes(NamedTuple):
    """Of every node (nodes,) float32: how many nodes, and neighbours over all hops, it reads."""

    nodes: np.ndarray
    edges: np.ndarray


class SizeExpectation:
    """Makes the tables of one graph; `two_hops` is what a query's work is measured by."""

    def __init__(self, graph: GraphStore):
        self._graph = graph
        self._degrees = graph.degrees.astype(np.float32)

    def at(self, fanout: Sequence[int]) -> ExpectedSizes:
        """Return what each node reads at the fan-out of each hop.

        Nodes that two branches of one query reach are counted twice, but for the way back to where
        a branch came from, which in an undirected graph every list holds.
        """
        drawn = [np.minimum(self._degrees, f) for f in fanout]
        back = [self._returning(f) for f in fanout]
        below = np.zeros_like(self._degrees)
        for hop in reversed(range(len(fanout))):
            deeper = below if hop + 1 == len(fanout) else below - back[hop + 1]
            below = drawn[hop] * (1.0 + np.maximum(self._mean_over_neighbours(deeper), 0.0))
        edges = np.zeros_like(self._degrees)
        for hop, counts in enumerate(drawn):  # every node of the levels so far is drawn for again
            edges += sum((self._summed(counts, drawn[:level]) for level in range(hop + 1)), 0.0)
        return ExpectedSizes(1.0 + below, edges)

    @cached_property
    def two_hops(self) -> np.ndarray:
        """(nodes,) float32: all neighbours within two hops over the median node's, at least 0."""
        degrees = self._degrees
        whole = 1.0 + degrees * (1.0 + self._mean_over_neighbours(degrees))
        return whole / np.median(whole)

    def _summed(self, values: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
        """The expected sum of `values` over the level that the hops `drawn` lead to."""
        for counts in reversed(drawn):
            values = counts * self._mean_over_neighbours(values)
        return values

    def _returning(self, fanout: int) -> np.ndarray:
        """The chance that a node draws the one that it was reached from."""
        chance = np.minimum(1.0, fanout / np.maximum(self._degrees, 1.0))
        return self._reciprocity * chance.astype(np.float32)

    @cached_property
    def _reciprocity(self) -> float:
        """The share of edges that run both ways."""
        graph = self._graph
        if not graph.num_edges:
            return 0.0
        rng = np.random.default_rng(0)
        places = rng.integers(0, graph.num_edges, min(_LOOKED_AT, graph.num_edges))
        rows = np.searchsorted(graph.indptr, places, side="right") - 1
        both = 0
        for row, other in zip(rows, graph.indices[places], strict=True):
            theirs = graph.indices[graph.indptr[other] : graph.indptr[other + 1]]
            both += bool(np.any(theirs == row))
        return both / len(places)

    def _mean_over_neighbours(self, values: np.ndarray) -> np.ndarray:
        """(nodes,) the mean of `values` over each node's neighbours, 0 where it has none."""
        graph = self._graph
        sums = np.zeros(graph.num_nodes, dtype=np.float64)
        full = np.flatnonzero(np.diff(graph.indptr))
        if len(full):
            read = values.astype(np.float64)[graph.indices]
            sums[full] = np.add.reduceat(read, graph.indptr[:-1][full])
        return (sums / np.maximum(self._degrees, 1.0)).astype(np.float32)
