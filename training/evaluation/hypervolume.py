"""Hyper-volume of a front in (cost, accuracy), with a bootstrap over the test images.

The area under the staircase "best accuracy within a cost", over the cost up to a ceiling as a
share of it: the mean accuracy that one gets when the budget is uniform up to the ceiling (nothing
below the cheapest subnet). Images are drawn anew with replacement, the same for all subnets, so
intervals of differences know that two fronts erred on the same images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_DRAWS = 1000


class HyperVolume(NamedTuple):
    """The area, a fraction, and the bootstrap's draws of it (same images in the same place)."""

    value: float
    draws: np.ndarray

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval (percentiles)."""
        low, high = np.quantile(self.draws, (0.025, 0.975))
        return float(low), float(high)

    def minus(self, other: HyperVolume) -> HyperVolume:
        """The paired difference."""
        return HyperVolume(self.value - other.value, self.draws - other.draws)

    def to_json(self) -> dict[str, Any]:
        """Value and interval."""
        return {"value": self.value, "ci95": list(self.ci95)}


def hyper_volume(cost: np.ndarray, correct: np.ndarray, ceiling: float) -> HyperVolume:
    """Volume of subnets with (S,) costs and (S, N) booleans of correct answers, up to a ceiling."""
    order = np.argsort(cost, kind="stable")
    cost, correct = cost[order], correct[order].astype(np.float64)
    num_images = correct.shape[1]
    draws = np.random.default_rng(0).multinomial(
        num_images, np.full(num_images, 1.0 / num_images), size=_DRAWS
    )  # (draws, N), how often each image is in each draw
    accuracy = np.concatenate([correct.mean(1)[:, None], correct @ draws.T / num_images], axis=1)
    best = np.maximum.accumulate(accuracy, axis=0)  # (S, 1 + draws)
    widths = np.diff(np.append(np.minimum(cost, ceiling), ceiling)) / ceiling  # (S,)
    areas = widths @ best
    return HyperVolume(float(areas[0]), areas[1:])
