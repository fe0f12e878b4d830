"""Samples of each bucket of work, for executors whose samples differ in it (nodes of a graph)."""

from __future__ import annotations

from typing import Any

import numpy as np

from subnetact.executor import Executor

_SHARES = (0.5, 0.9, 0.99, 0.999)  # of all samples, that lie below a bound
_INFINITE = float("inf")


def work_inputs(
    executor: Executor, sizes: tuple[int, ...], rng: np.random.Generator
) -> tuple[tuple[float, ...], dict[tuple[int, int], np.ndarray]]:
    """Return the buckets' bounds, and {(bucket, batch size): samples of that bucket}.

    Both are empty for executors that know no work, or whose samples are all alike.
    """
    if not hasattr(executor, "work_of"):
        return (), {}
    nodes: Any = executor
    bounds: list[float] = []
    for bound in sorted(set(nodes.work_quantiles(_SHARES))):
        low = bounds[-1] if bounds else -_INFINITE
        if len(nodes.of_work(low, bound, 1, rng)) and len(nodes.of_work(bound, _INFINITE, 1, rng)):
            bounds.append(bound)
    if not bounds:
        return (), {}
    edges = [-_INFINITE, *bounds, _INFINITE]
    inputs = {
        (bucket, size): nodes.of_work(edges[bucket], edges[bucket + 1], size, rng)
        for bucket in range(len(bounds) + 1)
        for size in sizes
    }
    return tuple(bounds), inputs
