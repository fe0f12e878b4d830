"""The neighbour sampler, plainly: the oracle of the compiled one (compiled_sampler.py).

A node's sample is the first `fanout` entries of a random order of its neighbours (Fisher-Yates),
which is a function of (seed, node) alone. Three things follow. A node's answer is the same every
time it is asked, alone or in any batch. Nodes that several queries of a batch reach are computed
once, since they are the same for all. And samples are nested: a larger fan-out only adds to a
smaller one, so a hop that reads 15 has read what a hop that reads 10 did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from supernet.graphs.graph_store import GraphStore

_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_64_BITS = 2**64 - 1


class SampledHop(NamedTuple):
    """Positions of the neighbours of n nodes: `indices[indptr[i]:indptr[i + 1]]` are those of i."""

    indptr: np.ndarray  # int64 (n + 1,)
    indices: np.ndarray  # int64 (edges,)


class SampledNodes(NamedTuple):
    """What a batch reads: node ids, the asked ones first, and its hops outwards.

    `asked[i]` is the position of the i-th asked node: one that is asked twice is read once.
    """

    nodes: np.ndarray  # int64 (nodes,)
    hops: tuple[SampledHop, ...]
    asked: np.ndarray  # int64 (B,)

    @property
    def num_edges(self) -> int:
        """How many neighbours are read, over all hops."""
        return sum(len(hop.indices) for hop in self.hops)


def sample(
    graph: GraphStore, asked: np.ndarray, fanout: Sequence[int], seed: int = 0
) -> SampledNodes:
    """Sample what a batch of `asked` node ids (B,) reads at the fan-out of each hop."""
    nodes, positions = _in_order_of_appearance(np.asarray(asked, dtype=np.int64))
    hops: list[SampledHop] = []
    for most in fanout:
        indptr, found = drawn_neighbours(graph, nodes, most, seed)
        nodes, places = _in_order_of_appearance(np.concatenate([nodes, found]))
        hops.append(SampledHop(indptr, places[len(places) - len(found) :]))
    return SampledNodes(nodes, tuple(hops), positions)


def drawn_neighbours(
    graph: GraphStore, nodes: np.ndarray, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the drawn neighbours of `nodes` (n,): indptr (n + 1,) and node ids, both int64.

    A list of at most `most` entries is taken whole and in its order.
    """
    starts, degrees = graph.indptr[nodes], graph.indptr[nodes + 1] - graph.indptr[nodes]
    counts = np.minimum(degrees, most)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts)  # 0, 1, ... in each list
    cut = np.flatnonzero(degrees > most)
    if len(cut):
        drawn = _first_of_random_order(nodes[cut], degrees[cut], most, seed)
        within[indptr[cut][:, None] + np.arange(most)] = drawn
    return indptr, graph.indices[np.repeat(starts, counts) + within].astype(np.int64)


def _first_of_random_order(
    nodes: np.ndarray, degrees: np.ndarray, most: int, seed: int
) -> np.ndarray:
    """(n, most) positions: the beginning of Fisher-Yates' shuffle of 0 .. degree - 1 of each node.

    Only what was swapped is kept, as pairs of place and value, so the cost does not grow with the
    degree.
    """
    rows = np.arange(len(nodes))
    drawn = np.empty((len(nodes), most), dtype=np.int64)
    places = np.full((len(nodes), most), -1, dtype=np.int64)
    values = np.empty((len(nodes), most), dtype=np.int64)
    keys = _hashed(nodes.astype(np.uint64) ^ _hashed(np.array([seed & _64_BITS], np.uint64)))
    for j in range(most):
        steps = np.uint64((j + 1) * _GAMMA & _64_BITS)
        random = _hashed(keys + steps) % (degrees - j).astype(np.uint64)
        picked = j + random.astype(np.int64)
        drawn[:, j] = _value_at(picked, places, values, j)
        # What stood at j moves to where the pick was taken from; j itself is never read again.
        values[rows, j] = _value_at(np.full(len(nodes), j), places, values, j)
        places[rows, j] = picked
    return drawn


def _value_at(at: np.ndarray, places: np.ndarray, values: np.ndarray, done: int) -> np.ndarray:
    """(n,) values of the shuffled rows at places `at`: of `done` swaps the last to touch it."""
    found = at.copy()
    for j in range(done):
        touched = places[:, j] == at
        found[touched] = values[touched, j]
    return found


def _hashed(x: np.ndarray) -> np.ndarray:
    """Splitmix64's finaliser (Steele et al., OOPSLA 2014) of uint64 numbers."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX2)
        return x ^ (x >> np.uint64(31))


def _in_order_of_appearance(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct ids in order of first appearance, and where each of `ids` stands."""
    distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return distinct[order], places[inverse]
