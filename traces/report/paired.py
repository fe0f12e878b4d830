"""Two runs of one trace compared bin by bin: what of their difference is more than chance.

Both runs met the same bursts, so that much of what varies from bin to bin is common to them and
leaves their difference. The moving-block bootstrap (Künsch 1989) resamples the same blocks of bins
for both; see `intervals` for one run alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FIGURES = ("slo_attainment", "mean_serving_accuracy", "utility")
_RESAMPLES = 2000
_MIN_BINS = 10
_LEVELS = (0.025, 0.975)

Report = Mapping[str, Any]


class Difference(NamedTuple):
    """A figure of the second run less that of the first, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def are_paired(first: Report, second: Report) -> bool:
    """Say whether two runs had the same arrivals in the same bins, of the same trace."""
    mine, other = first.get("series"), second.get("series")
    if not mine or not other or first.get("trace") != second.get("trace"):
        return False
    return mine["bin_s"] == other["bin_s"] and mine["arrived"] == other["arrived"]


def paired_differences(
    first: Report, second: Report, *, seed: int = 0
) -> dict[str, Difference] | None:
    """Return the differences of `FIGURES`; None for runs that are not paired, or too short.

    Attainment and utility are over all arrivals of the resampled blocks, accuracy over the on-time
    answers in them (0 where there are none), as in a report.
    """
    if not are_paired(first, second):
        return None
    arrived = np.asarray(first["series"]["arrived"], dtype=float)
    num_bins = arrived.size
    if num_bins < _MIN_BINS or not arrived.any():
        return None
    length = math.isqrt(num_bins)
    starts = np.random.default_rng(seed).integers(
        0, num_bins - length + 1, size=(_RESAMPLES, math.ceil(num_bins / length))
    )
    totals = _block_sums(arrived, starts, length)
    whole = _figures(first, arrived, None, length), _figures(second, arrived, None, length)
    drawn = _figures(first, totals, starts, length), _figures(second, totals, starts, length)
    found: dict[str, Difference] = {}
    for i, name in enumerate(FIGURES):
        low, high = np.quantile((drawn[1][i] - drawn[0][i])[totals > 0], _LEVELS)
        value = second[name] - first[name] if name in first else float(whole[1][i] - whole[0][i])
        found[name] = Difference(float(value), float(low), float(high))
    return found


def _figures(
    report: Report, totals: npt.NDArray[np.float64], starts: Any, length: int
) -> list[npt.NDArray[np.float64]]:
    """Return attainment, accuracy and utility, of the whole (no `starts`) or of each resample."""
    series = report["series"]
    on_time = np.asarray(series["on_time"], dtype=float)
    served = np.array([a or 0.0 for a in series["accuracy"]]) * on_time
    if starts is None:
        hits, sums, count = on_time.sum(), served.sum(), totals.sum()
    else:
        hits, sums = (_block_sums(column, starts, length) for column in (on_time, served))
        count = totals
    attainment = np.asarray(hits / np.maximum(count, 1e-300))
    accuracy = np.asarray(np.where(hits > 0, sums / np.maximum(hits, 1e-300), 0.0))
    return [attainment, accuracy, attainment * accuracy]


def _block_sums(
    column: npt.NDArray[np.float64], starts: npt.NDArray[np.int64], length: int
) -> npt.NDArray[np.float64]:
    reached = np.concatenate(([0.0], np.cumsum(column)))
    return (reached[starts + length] - reached[starts]).sum(axis=1)
