"""Generated graphs: large and skewed for speed, small and heterophilous for accuracy.

Both are functions of their arguments and seed, so figures measured on them can be measured again.
"""

from __future__ import annotations

import numpy as np

from supernet.graphs.edges import neighbour_lists
from supernet.graphs.graph_store import GraphStore


def power_law(
    *,
    num_nodes: int = 1_000_000,
    num_edges: int = 8_000_000,
    num_features: int = 128,
    num_classes: int = 8,
    exponent: float = 0.7,
    hub_share: float = 0.9,
    seed: int = 0,
) -> GraphStore:
    """A graph whose degrees fall off as a power law (Chung and Lu, PNAS 2002), directed.

    A hub is drawn with probability proportional to rank ** -exponent. A share `hub_share` of the
    edges makes hubs read uniform nodes, the rest uniform nodes read hubs: so most nodes read
    a few others, and some of those read thousands. Loops and repeated edges are left out. Features
    are standard normal, labels uniform.
    """
    rng = np.random.default_rng((seed, 0))
    weights = np.arange(1, num_nodes + 1, dtype=np.float64) ** -exponent
    edges_of = np.cumsum(weights) / weights.sum()
    hubs = rng.permutation(num_nodes)[np.searchsorted(edges_of, rng.random(num_edges))]
    others = rng.integers(0, num_nodes, num_edges)
    cut = round(num_edges * hub_share)
    sources = np.concatenate([others[:cut], hubs[cut:]])
    targets = np.concatenate([hubs[:cut], others[cut:]])
    indptr, indices = neighbour_lists(sources, targets, num_nodes, undirected=False)
    features = rng.standard_normal((num_nodes, num_features), dtype=np.float32)
    labels = rng.integers(0, num_classes, num_nodes).astype(np.int32)
    return GraphStore(
        name=f"power-law-{num_nodes}-{num_edges}",
        indptr=indptr,
        indices=indices,
        features=features,
        labels=labels,
        classes=tuple(map(str, range(num_classes))),
        source=f"generated: power_law, exponent {exponent}, hub share {hub_share}, seed {seed}",
    )


def heterophilous(
    *,
    num_nodes: int = 2400,
    num_classes: int = 5,
    degree: int = 8,
    homophily: float = 0.1,
    num_features: int = 64,
    signal: float = 2.0,
    train_per_class: int = 20,
    seed: int = 0,
) -> GraphStore:
    """A contextual stochastic block model (Deshpande et al., NeurIPS 2018) of low homophily.

    Of a node's edges a share `homophily` leads to its own class, the rest to the class after its
    own, in a circle: neighbours tell the class, though they are not of it. Features are a class
    mean of length `signal` in normal noise. Split: `train_per_class` of each, 500, 1,000.
    """
    rng = np.random.default_rng((seed, 1))
    labels = rng.permutation(np.arange(num_nodes) % num_classes).astype(np.int32)
    sources = np.repeat(np.arange(num_nodes), degree // 2)
    is_own = rng.random(len(sources)) < homophily
    wanted = (labels[sources] + ~is_own) % num_classes
    members = [np.flatnonzero(labels == c) for c in range(num_classes)]
    targets = np.empty_like(sources)
    for c, ids in enumerate(members):
        mine = wanted == c
        targets[mine] = ids[rng.integers(0, len(ids), int(mine.sum()))]
    indptr, indices = neighbour_lists(sources, targets, num_nodes, undirected=True)
    means = rng.standard_normal((num_classes, num_features))
    means *= signal / np.linalg.norm(means, axis=1, keepdims=True)
    features = means[labels] + rng.standard_normal((num_nodes, num_features))
    train = np.concatenate([ids[:train_per_class] for ids in members])
    rest = rng.permutation(np.setdiff1d(np.arange(num_nodes), train))
    ids = {"train": train, "validation": rest[:500], "test": rest[500:1500]}
    return GraphStore(
        name="heterophilous",
        indptr=indptr,
        indices=indices,
        features=features.astype(np.float32),
        labels=labels,
        splits={name: part.astype(np.int32) for name, part in ids.items()},
        classes=tuple(map(str, range(num_classes))),
        source=f"generated: heterophilous, homophily {homophily}, seed {seed}",
    )
