"""The neighbour sampler, compiled by numba (the extra `fast`): the same samples as sampler.py.

Besides sampling it takes the mean of the neighbours' features straight from the graph's file, so
the features of the outermost hop, most of what a query reads, are never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from supernet.graphs.graph_store import GraphStore
from supernet.graphs.sampler import SampledHop, SampledNodes

_GAMMA, _MIX1, _MIX2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
_compiled: Any = njit(cache=True, nogil=True)


def sample(
    graph: GraphStore, asked: np.ndarray, fanout: Sequence[int], seed: int = 0
) -> SampledNodes:
    """See `sampler.sample`."""
    key = _seed_key(seed)
    ids = np.ascontiguousarray(asked, dtype=np.int64)
    nodes, positions = _first_nodes(ids)
    hops: list[SampledHop] = []
    for most in fanout:
        nodes, indptr, places = _hop(graph.indptr, graph.indices, nodes, most, key)
        hops.append(SampledHop(indptr, places))
    return SampledNodes(nodes, tuple(hops), positions)


def drawn_neighbours(
    graph: GraphStore, nodes: np.ndarray, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """See `sampler.drawn_neighbours`."""
    ids = np.ascontiguousarray(nodes, dtype=np.int64)
    indptr = _counted(graph.indptr, ids, most)
    found = np.empty(indptr[-1], dtype=np.int64)
    _draw_all(graph.indptr, graph.indices, ids, most, _seed_key(seed), indptr, found)
    return indptr, found


def gathered(features: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(n, F) float32 features of `nodes` (n,)."""
    return _gathered(features, nodes)


def mean_features(features: np.ndarray, nodes: np.ndarray, hop: SampledHop) -> np.ndarray:
    """(n, F) float32: of each list of the hop the mean of its nodes' features, zeros if empty."""
    return _means(features, nodes, hop.indptr, hop.indices)


def mean_rows(rows: np.ndarray, hop: SampledHop) -> np.ndarray:
    """(n, C) float32: of each list of the hop the mean of its rows, zeros if empty."""
    return _row_means(rows, hop.indptr, hop.indices)


def _seed_key(seed: int) -> np.uint64:
    return np.uint64(_hashed(np.uint64(seed & (2**64 - 1))))


@_compiled
def _hashed(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


@_compiled
def _draw(start: Any, degree: Any, indices: Any, node: Any, most: Any, seed_key: Any, out: Any):
    """Write the drawn neighbours of one node to `out`."""
    if degree <= most:
        for j in range(degree):
            out[j] = indices[start + j]
        return
    places = np.empty(most, dtype=np.int64)
    values = np.empty(most, dtype=np.int64)
    key = _hashed(np.uint64(node) ^ seed_key)
    for j in range(most):
        random = _hashed(key + np.uint64(j + 1) * _GAMMA) % np.uint64(degree - j)
        picked = j + np.int64(random)
        at_picked, at_j = picked, j
        for i in range(j):
            if places[i] == picked:
                at_picked = values[i]
            if places[i] == j:
                at_j = values[i]
        out[j] = indices[start + at_picked]
        places[j] = picked
        values[j] = at_j


@_compiled
def _counted(graph_indptr: Any, nodes: Any, most: Any) -> Any:
    indptr = np.empty(len(nodes) + 1, dtype=np.int64)
    indptr[0] = 0
    for i in range(len(nodes)):
        node = nodes[i]
        indptr[i + 1] = indptr[i] + min(most, graph_indptr[node + 1] - graph_indptr[node])
    return indptr


@_compiled
def _draw_all(
    graph_indptr: Any, indices: Any, nodes: Any, most: Any, seed_key: Any, indptr: Any, out: Any
):
    for i in range(len(nodes)):
        node = nodes[i]
        start = graph_indptr[node]
        degree = graph_indptr[node + 1] - start
        _draw(start, degree, indices, node, most, seed_key, out[indptr[i] :])


@_compiled
def _placed(node: Any, table: Any, places: Any, order: Any, count: Any) -> Any:
    """Return the node's place in the order of appearance; a new one's is `count`."""
    mask = len(table) - 1
    at = np.int64(_hashed(np.uint64(node)) & np.uint64(mask))
    while table[at] >= 0:
        if table[at] == node:
            return places[at]
        at = (at + 1) & mask
    table[at] = node
    places[at] = count
    order[count] = node
    return count


@_compiled
def _first_nodes(ids: Any) -> Any:
    size = 4
    while size < 2 * len(ids):
        size *= 2
    table = np.full(size, -1, dtype=np.int64)
    places = np.empty(size, dtype=np.int64)
    order = np.empty(len(ids), dtype=np.int64)
    positions = np.empty(len(ids), dtype=np.int64)
    count = 0
    for i in range(len(ids)):
        positions[i] = _placed(ids[i], table, places, order, count)
        count += positions[i] == count
    return order[:count].copy(), positions


@_compiled
def _hop(graph_indptr: Any, indices: Any, nodes: Any, most: Any, seed_key: Any) -> Any:
    """One hop outwards: all nodes read so far, the lists' indptr, and the positions in them."""
    indptr = _counted(graph_indptr, nodes, most)
    found = np.empty(indptr[-1], dtype=np.int64)
    _draw_all(graph_indptr, indices, nodes, most, seed_key, indptr, found)
    bound = len(nodes) + len(found)
    size = 4
    while size < 2 * bound:
        size *= 2
    table = np.full(size, -1, dtype=np.int64)
    places = np.empty(size, dtype=np.int64)
    order = np.empty(bound, dtype=np.int64)
    count = 0
    for i in range(len(nodes)):
        _placed(nodes[i], table, places, order, count)
        count += 1
    for i in range(len(found)):
        place = _placed(found[i], table, places, order, count)
        count += place == count
        found[i] = place
    return order[:count].copy(), indptr, found


@_compiled
def _gathered(features: Any, nodes: Any) -> Any:
    out = np.empty((len(nodes), features.shape[1]), dtype=np.float32)
    for i in range(len(nodes)):
        node = nodes[i]
        for c in range(features.shape[1]):
            out[i, c] = features[node, c]
    return out


@_compiled
def _row_means(rows: Any, indptr: Any, positions: Any) -> Any:
    width = rows.shape[1]
    out = np.zeros((len(indptr) - 1, width), dtype=np.float32)
    for i in range(len(indptr) - 1):
        count = indptr[i + 1] - indptr[i]
        for j in range(indptr[i], indptr[i + 1]):
            position = positions[j]
            for c in range(width):
                out[i, c] += rows[position, c]
        if count:
            scale = np.float32(1.0) / np.float32(count)
            for c in range(width):
                out[i, c] *= scale
    return out


@_compiled
def _means(features: Any, nodes: Any, indptr: Any, positions: Any) -> Any:
    width = features.shape[1]
    out = np.zeros((len(indptr) - 1, width), dtype=np.float32)
    for i in range(len(indptr) - 1):
        count = indptr[i + 1] - indptr[i]
        for j in range(indptr[i], indptr[i + 1]):
            node = nodes[positions[j]]
            for c in range(width):
                out[i, c] += features[node, c]
        if count:
            scale = np.float32(1.0) / np.float32(count)
            for c in range(width):
                out[i, c] *= scale
    return out
