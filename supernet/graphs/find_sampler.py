"""Which sampler runs: the compiled one where numba runs, else the plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from supernet.graphs import sampler
from supernet.graphs.code_cache import is_installed, missing
from supernet.graphs.graph_store import GraphStore
from supernet.graphs.sampler import SampledHop, SampledNodes

logger = logging.getLogger(__name__)


class NeighbourSampler(NamedTuple):
    """A way to sample; `name` is `compiled` or `plain`, as reports say it."""

    name: str
    sample: Callable[[GraphStore, np.ndarray, Sequence[int], int], SampledNodes]
    drawn_neighbours: Callable[[GraphStore, np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]
    gathered: Callable[[np.ndarray, np.ndarray], np.ndarray]
    mean_features: Callable[[np.ndarray, np.ndarray, SampledHop], np.ndarray]
    mean_rows: Callable[[np.ndarray, SampledHop], np.ndarray]


@cache
def find_sampler() -> NeighbourSampler:
    """Return the fastest sampler that there is here (the extra `fast` brings numba).

    Numba that is installed and broken is warned of, and done without.
    """
    if fault := missing():
        if is_installed():
            logger.warning("%s; nodes are sampled by numpy, many times slower", fault)
        return PLAIN
    from supernet.graphs import compiled_sampler as compiled

    return NeighbourSampler(
        "compiled",
        compiled.sample,
        compiled.drawn_neighbours,
        compiled.gathered,
        compiled.mean_features,
        compiled.mean_rows,
    )


def _gathered(features: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    return np.asarray(features[nodes])


def _mean_features(features: np.ndarray, nodes: np.ndarray, hop: SampledHop) -> np.ndarray:
    return _mean_rows(features, hop._replace(indices=nodes[hop.indices]))


def _mean_rows(rows: np.ndarray, hop: SampledHop) -> np.ndarray:
    counts = np.diff(hop.indptr)
    means = np.zeros((len(counts), rows.shape[1]), dtype=np.float32)
    full = np.flatnonzero(counts)
    if len(full):
        sums = np.add.reduceat(np.asarray(rows[hop.indices]), hop.indptr[:-1][full], axis=0)
        means[full] = sums / counts[full, None].astype(np.float32)
    return means


PLAIN = NeighbourSampler(
    "plain", sampler.sample, sampler.drawn_neighbours, _gathered, _mean_features, _mean_rows
)
