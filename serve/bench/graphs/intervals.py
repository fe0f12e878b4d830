"""Means over seeds with their 95 % intervals (Student's t), of values and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t


class MeanInterval(NamedTuple):
    """A mean, its 95 % interval, and the standard deviation of what it is the mean of."""

    mean: float
    low: float
    high: float
    deviation: float
    seeds: int

    def detail(self) -> dict[str, float | int | list[float]]:
        """Return what a row says of it besides its value."""
        return {
            **({"ci95": [round(self.low, 5), round(self.high, 5)]} if self.seeds > 1 else {}),
            "sd": round(self.deviation, 5),
            "seeds": self.seeds,
        }


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Return the mean of at least one value; of one value the interval is infinite."""
    given = np.asarray(values, dtype=np.float64)
    mean, count = float(given.mean()), len(given)
    if count < 2:
        return MeanInterval(mean, -np.inf, np.inf, 0.0, count)
    deviation = float(given.std(ddof=1))
    half = float(student_t.ppf(0.975, count - 1)) * deviation / count**0.5
    return MeanInterval(mean, mean - half, mean + half, deviation, count)


def paired(first: Sequence[float], second: Sequence[float]) -> MeanInterval:
    """Return the mean of first - second, seed by seed. Raises ValueError for other counts."""
    return mean_interval([a - b for a, b in zip(first, second, strict=True)])
