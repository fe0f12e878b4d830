"""The sampler: what it draws, that a node's sample is its own, that the compiled one is equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs import sampler
from supernet.graphs.edges import neighbour_lists
from supernet.graphs.find_sampler import PLAIN, find_sampler
from supernet.graphs.graph_store import GraphStore

FANOUTS = [(), (5,), (15, 10), (3, ALL_NEIGHBOURS), (7, 5, 3), (2, 9)]


def neighbours(graph: GraphStore, node: int) -> set[int]:
    return set(graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist())


def lists(graph: GraphStore, sampled: sampler.SampledNodes, hop: int) -> dict[int, list[int]]:
    indptr, indices = sampled.hops[hop]
    return {
        int(sampled.nodes[i]): sampled.nodes[indices[indptr[i] : indptr[i + 1]]].tolist()
        for i in range(len(indptr) - 1)
    }


@pytest.mark.parametrize("fanout", FANOUTS)
def test_every_hop_draws_different_neighbours_up_to_the_fanout(
    skewed: GraphStore, fanout: tuple[int, ...]
) -> None:
    asked = np.array([3, 500, 3, 799, 0])
    sampled = sampler.sample(skewed, asked, fanout, seed=1)
    assert sampled.nodes[sampled.asked].tolist() == asked.tolist()
    assert len(set(sampled.nodes.tolist())) == len(sampled.nodes)
    read = [4, *(max(h.indices, default=-1) + 1 for h in sampled.hops)]
    for hop, most in enumerate(fanout):
        drawn = lists(skewed, sampled, hop)
        assert len(drawn) >= read[hop]
        for node, found in drawn.items():
            theirs = neighbours(skewed, node)
            assert set(found) <= theirs
            assert len(set(found)) == len(found) == min(len(theirs), most)


@pytest.mark.parametrize("fanout", FANOUTS)
def test_a_nodes_sample_is_the_same_alone_and_in_any_batch(
    skewed: GraphStore, fanout: tuple[int, ...]
) -> None:
    asked = np.arange(0, 800, 9)
    together = [
        lists(skewed, sampler.sample(skewed, asked, fanout, 5), h) for h in range(len(fanout))
    ]
    for node in asked[::7]:
        alone = sampler.sample(skewed, np.array([node]), fanout, 5)
        for hop in range(len(fanout)):
            for read, found in lists(skewed, alone, hop).items():
                assert together[hop][read] == found


def test_samples_are_nested_and_differ_by_seed(skewed: GraphStore) -> None:
    hub = np.array([int(np.argmax(skewed.degrees))])
    draws = {m: sampler.drawn_neighbours(skewed, hub, m, 0)[1].tolist() for m in (1, 5, 20, 60)}
    assert draws[60][:20] == draws[20]
    assert draws[20][:5] == draws[5]
    assert draws[5][:1] == draws[1]
    assert sampler.drawn_neighbours(skewed, hub, 20, 1)[1].tolist() != draws[20]


def test_every_neighbour_is_as_likely_as_another(skewed: GraphStore) -> None:
    hub = np.array([int(np.argmax(skewed.degrees))])
    degree, most, seeds = int(skewed.degrees.max()), 10, 1500
    draws = [sampler.drawn_neighbours(skewed, hub, most, s)[1] for s in range(seeds)]
    theirs = sorted(neighbours(skewed, int(hub[0])))
    counts = np.bincount(np.searchsorted(theirs, np.concatenate(draws)), minlength=degree)
    expected = seeds * most / degree
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - degree) < 5 * np.sqrt(2 * degree)  # 5 standard deviations of chi squared


@settings(max_examples=40, deadline=None)
@given(
    num_nodes=st.integers(1, 40),
    edges=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=200),
    fanout=st.lists(st.sampled_from([1, 2, 3, 8, ALL_NEIGHBOURS]), max_size=3),
    asked=st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
    seed=st.integers(-(2**63), 2**63),
)
def test_the_compiled_sampler_equals_the_plain_one(
    num_nodes: int,
    edges: list[tuple[int, int]],
    fanout: list[int],
    asked: list[int],
    seed: int,
) -> None:
    pytest.importorskip("numba", reason="needs numba (the extra `fast`)")
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2) % num_nodes
    indptr, indices = neighbour_lists(ends[:, 0], ends[:, 1], num_nodes, undirected=False)
    features = np.arange(num_nodes * 3, dtype=np.float32).reshape(num_nodes, 3)
    graph = GraphStore(name="drawn", indptr=indptr, indices=indices, features=features)
    fast, nodes = find_sampler(), np.array(asked) % num_nodes
    assert fast.name == "compiled"
    ours, theirs = (
        fast.sample(graph, nodes, fanout, seed),
        sampler.sample(graph, nodes, fanout, seed),
    )
    np.testing.assert_array_equal(ours.nodes, theirs.nodes)
    np.testing.assert_array_equal(ours.asked, theirs.asked)
    for mine, other in zip(ours.hops, theirs.hops, strict=True):
        np.testing.assert_array_equal(mine.indptr, other.indptr)
        np.testing.assert_array_equal(mine.indices, other.indices)
        means = PLAIN.mean_features(features, theirs.nodes, other)
        np.testing.assert_allclose(fast.mean_features(features, ours.nodes, mine), means, rtol=1e-5)
        np.testing.assert_allclose(
            fast.mean_rows(features[theirs.nodes], mine),
            PLAIN.mean_rows(features[theirs.nodes], other),
            rtol=1e-5,
        )
    for most in fanout:
        pairs = zip(
            fast.drawn_neighbours(graph, nodes, most, seed),
            sampler.drawn_neighbours(graph, nodes, most, seed),
            strict=True,
        )
        for mine, other in pairs:
            np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(fast.gathered(features, nodes), PLAIN.gathered(features, nodes))
