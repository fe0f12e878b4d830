"""What a query will read, foretold: exact where nothing is drawn, near where it is."""

from __future__ import annotations

import numpy as np

from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs import sampler
from supernet.graphs.expected_size import SizeExpectation
from supernet.graphs.generated import power_law
from supernet.graphs.graph_store import GraphStore


def test_edges_are_exact_where_every_neighbour_is_read(skewed: GraphStore) -> None:
    expected = SizeExpectation(skewed).at((ALL_NEIGHBOURS, ALL_NEIGHBOURS))
    for node in (0, 17, 400, 799):
        sampled = sampler.sample(skewed, np.array([node]), (ALL_NEIGHBOURS, ALL_NEIGHBOURS))
        assert abs(expected.edges[node] - sampled.num_edges) <= 1e-3 * (sampled.num_edges + 1)


def test_sizes_of_drawn_hops_are_near() -> None:
    graph = power_law(num_nodes=30_000, num_edges=240_000, num_features=2)
    expectation = SizeExpectation(graph)
    expected = expectation.at((15, 10))
    nodes = np.random.default_rng(0).integers(0, graph.num_nodes, 600)
    errors: dict[str, list[float]] = {"nodes": [], "edges": []}
    for node in nodes:
        sampled = sampler.sample(graph, np.array([node]), (15, 10))
        errors["nodes"].append(abs(expected.nodes[node] / len(sampled.nodes) - 1))
        errors["edges"].append(abs(expected.edges[node] / max(sampled.num_edges, 1) - 1))
    assert np.percentile(errors["nodes"], 95) < 0.25
    assert np.percentile(errors["edges"], 95) < 0.25


def test_a_node_without_neighbours_reads_itself(skewed: GraphStore) -> None:
    expected = SizeExpectation(skewed).at((5, 5, 5))
    assert expected.nodes[799] == 1
    assert expected.edges[799] == 0
    assert SizeExpectation(skewed).two_hops[799] > 0
