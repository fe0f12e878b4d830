"""A small skewed graph, drawn: hubs of several hundred neighbours, nodes of none."""

from __future__ import annotations

import numpy as np
import pytest

from supernet.graphs.edges import neighbour_lists
from supernet.graphs.graph_store import GraphStore


@pytest.fixture(scope="session")
def skewed() -> GraphStore:
    """800 nodes, 16 features, 3 classes; the last 20 nodes have no neighbour."""
    rng = np.random.default_rng(7)
    num_nodes = 800
    sources = (rng.random(6000) ** 3 * (num_nodes - 20)).astype(np.int64)
    targets = rng.integers(0, num_nodes - 20, 6000)
    indptr, indices = neighbour_lists(sources, targets, num_nodes, undirected=True)
    return GraphStore(
        name="skewed",
        indptr=indptr,
        indices=indices,
        features=rng.standard_normal((num_nodes, 16)).astype(np.float32),
        labels=rng.integers(0, 3, num_nodes).astype(np.int32),
        splits={"test": np.arange(0, 800, 5, dtype=np.int32)},
    )
