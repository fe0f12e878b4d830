"""How sure an attainment is: 95 % intervals, for independent queries and for bursts.

The binomial interval (Wilson's) takes queries as independent. They are not: a burst misses many
deadlines at once. The block bootstrap resamples stretches of the run's time series instead, long
enough that what happens in one hardly depends on the one before (Künsch 1989, moving blocks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_Z = 1.959964
_RESAMPLES = 2000
_MIN_BINS = 10


def binomial_interval(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; (0, 1) of nothing.

    >>> low, high = binomial_interval(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    if not total:
        return 0.0, 1.0
    share, z2 = hits / total, _Z * _Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # The share itself is inside, whatever rounding says of 0 and 1.
    return min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)


def bootstrap_interval(
    hits: Sequence[int], totals: Sequence[int], *, seed: int = 0
) -> tuple[float, float] | None:
    """Return the moving-block bootstrap's 95 % interval of sum(hits) / sum(totals) over bins.

    Blocks are as many bins as the square root of their number. None where fewer than
    `_MIN_BINS` bins say too little.
    """
    hit, total = np.asarray(hits, dtype=float), np.asarray(totals, dtype=float)
    num_bins = len(total)
    if num_bins < _MIN_BINS or not total.sum():
        return None
    length = math.isqrt(num_bins)
    num_blocks = math.ceil(num_bins / length)
    starts = np.random.default_rng(seed).integers(
        0, num_bins - length + 1, size=(_RESAMPLES, num_blocks)
    )
    # Sums over blocks from prefix sums: (resamples, blocks).
    shares = [_block_sums(column, starts, length).sum(axis=1) for column in (hit, total)]
    counted = shares[1] > 0
    low, high = np.quantile(shares[0][counted] / shares[1][counted], [0.025, 0.975])
    return float(low), float(high)


def attainment_intervals(report: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the intervals of a report's attainment: `binomial`, and `block_bootstrap` if any."""
    intervals = {
        "binomial": list(binomial_interval(report["outcomes"]["on_time"], report["num_queries"]))
    }
    series = report["series"]
    bootstrap = bootstrap_interval(series["on_time"], series["arrived"])
    if bootstrap is not None:
        intervals["block_bootstrap"] = list(bootstrap)
    return intervals


def widest(intervals: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Return the interval to show: the wider of the two, since neither is too wide by much."""
    low, high = max(intervals.values(), key=lambda interval: interval[1] - interval[0])
    return low, high


def _block_sums(column: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    reached = np.concatenate(([0.0], np.cumsum(column)))
    return reached[starts + length] - reached[starts]
