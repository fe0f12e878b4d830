"""The neighbour sampler, compiled by numba (the extra `fast`): the same samples as sampler.py.

Besides sampling it takes the mean of the neighbours' features straight from the graph's file, so
the features of the outermost hop, most of what a query reads, are never copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from supernet.graphs import sampler_kernels as kernels
from supernet.graphs.graph_store import GraphStore
from supernet.graphs.sampler import SampledHop, SampledNodes


def sample(
    graph: GraphStore, asked: np.ndarray, fanout: Sequence[int], seed: int = 0
) -> SampledNodes:
    """See `sampler.sample`."""
    key, ids = seed_key(seed), _plain_ids(asked)
    nodes, positions = kernels.first_nodes(ids)
    hops: list[SampledHop] = []
    for most in fanout:
        nodes, indptr, places = kernels.next_hop(graph.indptr, graph.indices, nodes, most, key)
        hops.append(SampledHop(indptr, places))
    return SampledNodes(nodes, tuple(hops), positions)


def drawn_neighbours(
    graph: GraphStore, nodes: np.ndarray, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """See `sampler.drawn_neighbours`."""
    ids = _plain_ids(nodes)
    indptr = kernels.counted(graph.indptr, ids, most)
    found = np.empty(indptr[-1], dtype=np.int64)
    kernels.draw_all(graph.indptr, graph.indices, ids, most, seed_key(seed), indptr, found)
    return indptr, found


def gathered(features: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(n, F) float32 features of `nodes` (n,)."""
    return kernels.gathered(features, nodes)


def mean_features(features: np.ndarray, nodes: np.ndarray, hop: SampledHop) -> np.ndarray:
    """(n, F) float32: of each list of the hop the mean of its nodes' features, zeros if empty."""
    return kernels.feature_means(features, nodes, hop.indptr, hop.indices)


def mean_rows(rows: np.ndarray, hop: SampledHop) -> np.ndarray:
    """(n, C) float32: of each list of the hop the mean of its rows, zeros if empty."""
    return kernels.row_means(rows, hop.indptr, hop.indices)


def seed_key(seed: int) -> np.uint64:
    """What the keys of a seed's draws are made of."""
    return np.uint64(kernels.hashed(np.uint64(seed & (2**64 - 1))))


def _plain_ids(nodes: np.ndarray) -> np.ndarray:
    """(n,) int64 that can be written: for a read-only array everything would be compiled anew."""
    return np.require(nodes, dtype=np.int64, requirements=("C", "A", "W"))
