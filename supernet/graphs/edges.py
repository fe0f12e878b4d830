"""From a list of edges to neighbour lists (CSR)."""

from __future__ import annotations

import numpy as np

from supernet.graphs.graph_store import GraphDataError

_MOST_NODES = 2**31  # ids are int32


def neighbour_lists(
    sources: np.ndarray, targets: np.ndarray, num_nodes: int, *, undirected: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return indptr int64 (num_nodes + 1,) and indices int32 (edges,), each list ascending.

    Edge i lets node `targets[i]` read `sources[i]`, and the other way too with `undirected`. Loops
    and repeated edges are left out: a layer reads the node itself anyway. Ids are within the range.
    Raises GraphDataError for more nodes than int32 can number.
    """
    if num_nodes > _MOST_NODES:
        raise GraphDataError(f"the graph has {num_nodes} nodes, allowed up to {_MOST_NODES}")
    if undirected:
        sources, targets = np.concatenate([sources, targets]), np.concatenate([targets, sources])
    kept = sources != targets
    keys = np.unique(targets[kept].astype(np.int64) * num_nodes + sources[kept])
    rows, columns = keys // num_nodes, (keys % num_nodes).astype(np.int32)
    indptr = np.zeros(num_nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=num_nodes), out=indptr[1:])
    return indptr, columns
