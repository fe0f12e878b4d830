"""The loops of the compiled sampler (numba, the extra `fast`), for other compiled code to call.

Arrays in and out; `compiled_sampler.py` is how Python calls them, `sampler.py` their plain twin.
Machine code of who calls is kept by a digest of this file too (`jit.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from supernet.graphs.jit import compiled

_GAMMA, _MIX1, _MIX2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


@compiled
def hashed(x: Any) -> Any:
    """Splitmix64's finaliser of a uint64."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


@compiled
def _draw(key: Any, start: Any, degree: Any, indices: Any, swapped: Any, out: Any) -> None:
    """Write the beginning of a random order of one list, as long as `swapped` (most, 2)."""
    for j in range(len(swapped)):
        random = hashed(key + np.uint64(j + 1) * _GAMMA) % np.uint64(degree - j)
        picked = j + np.int64(random)
        at_picked, at_j = picked, j
        for i in range(j):
            if swapped[i, 0] == picked:
                at_picked = swapped[i, 1]
            if swapped[i, 0] == j:
                at_j = swapped[i, 1]
        out[j] = indices[start + at_picked]
        swapped[j, 0] = picked
        swapped[j, 1] = at_j


@compiled
def counted(graph_indptr: Any, nodes: Any, most: Any) -> Any:
    """Where each node's drawn list begins: (n + 1,)."""
    indptr = np.empty(len(nodes) + 1, dtype=np.int64)
    indptr[0] = 0
    for i in range(len(nodes)):
        node = nodes[i]
        indptr[i + 1] = indptr[i] + min(most, graph_indptr[node + 1] - graph_indptr[node])
    return indptr


@compiled
def draw_all(
    graph_indptr: Any, indices: Any, nodes: Any, most: Any, seed_key: Any, indptr: Any, out: Any
) -> None:
    """Write the drawn neighbours of all `nodes` to `out`, each list at its place in `indptr`."""
    swapped = np.empty((0, 2), dtype=np.int64)
    for i in range(len(nodes)):
        node = nodes[i]
        start = graph_indptr[node]
        degree = graph_indptr[node + 1] - start
        mine = out[indptr[i] :]
        if degree <= most:
            for j in range(degree):
                mine[j] = indices[start + j]
            continue
        if len(swapped) == 0:  # only now is `most` known to be no more than a list has
            swapped = np.empty((most, 2), dtype=np.int64)
        _draw(hashed(np.uint64(node) ^ seed_key), start, degree, indices, swapped, mine)


@compiled
def _placed(node: Any, table: Any, places: Any, order: Any, count: Any) -> Any:
    """Return the node's place in the order of appearance; a new one's is `count`."""
    mask = len(table) - 1
    at = np.int64(hashed(np.uint64(node)) & np.uint64(mask))
    while table[at] >= 0:
        if table[at] == node:
            return places[at]
        at = (at + 1) & mask
    table[at] = node
    places[at] = count
    order[count] = node
    return count


@compiled
def first_nodes(ids: Any) -> Any:
    """The distinct ids in order of appearance, and where each of `ids` stands among them."""
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


@compiled
def next_hop(graph_indptr: Any, indices: Any, nodes: Any, most: Any, seed_key: Any) -> Any:
    """One hop outwards: all nodes read so far, the lists' indptr, and the positions in them."""
    indptr = counted(graph_indptr, nodes, most)
    found = np.empty(indptr[-1], dtype=np.int64)
    draw_all(graph_indptr, indices, nodes, most, seed_key, indptr, found)
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


@compiled
def gathered(features: Any, nodes: Any) -> Any:
    """(n, F) float32 rows of `nodes` (n,)."""
    out = np.empty((len(nodes), features.shape[1]), dtype=np.float32)
    for i in range(len(nodes)):
        mine, row = out[i], features[nodes[i]]
        for c in range(len(mine)):
            mine[c] = row[c]
    return out


@compiled
def row_means(rows: Any, indptr: Any, positions: Any) -> Any:
    """(n, C) float32: of each list the mean of the rows at its positions, zeros if empty."""
    out = np.zeros((len(indptr) - 1, rows.shape[1]), dtype=np.float32)
    for i in range(len(out)):
        mine = out[i]
        for j in range(indptr[i], indptr[i + 1]):
            row = rows[positions[j]]
            for c in range(len(mine)):
                mine[c] += row[c]
        scale = np.float32(1.0) / np.float32(max(indptr[i + 1] - indptr[i], 1))
        for c in range(len(mine)):
            mine[c] *= scale
    return out


@compiled
def feature_means(features: Any, nodes: Any, indptr: Any, positions: Any) -> Any:
    """(n, F) float32: of each list the mean of its nodes' features, zeros if empty."""
    out = np.zeros((len(indptr) - 1, features.shape[1]), dtype=np.float32)
    for i in range(len(out)):
        mine = out[i]
        for j in range(indptr[i], indptr[i + 1]):
            row = features[nodes[positions[j]]]
            for c in range(len(mine)):
                mine[c] += row[c]
        scale = np.float32(1.0) / np.float32(max(indptr[i + 1] - indptr[i], 1))
        for c in range(len(mine)):
            mine[c] *= scale
    return out
