"""Predicting a subnet's accuracy from its arch, and its latency from a measured profile.

Accuracy: ridge regression of the log odds on one-hot choices (per stage, and per block in it) and
the logarithms of MACs and parameters, its strength chosen by leave-one-out. OFA uses an MLP on
16,000 measured subnets; with the few hundred that a small machine can measure, a linear model
with these features ranks better. Latency: non-negative least squares on MACs, parameters and the
number of blocks, over the subnets that were profiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from supernet.arch import Arch
from supernet.space import SearchSpace
from supernet.subnets.cost import Cost

CostOf = Callable[[Arch], Cost]
_FOLDS = 5
MIN_MEASURED = 2 * _FOLDS


class Quality(NamedTuple):
    """Cross-validated: rank correlation (Kendall's tau) and mean absolute error.

    No `tau` where all that was measured, or foretold, is equal: there is no order then.
    """

    tau: float | None
    mean_error: float


def features(space: SearchSpace, arch: Arch, cost: Cost) -> np.ndarray:
    """One-hot choices and log sizes of an arch, of one length for all archs of a space."""
    row: list[float] = [np.log(cost.macs), np.log(cost.params)]
    row += [float(arch.resolution == r) for r in space.resolution]
    for depth, choices in zip(arch.depth, space.depth, strict=True):
        row += [float(depth == choice) for choice in choices]
    for width, choices in zip(arch.width, space.width, strict=True):
        row += [float(width == choice) for choice in choices]
    for name in ("expand", "kernel", "heads", "fanout"):
        entries = iter(getattr(arch, name))
        for stage, depth in enumerate(arch.depth if getattr(space, name) else ()):
            choices = space.block_choices(name, stage)
            present = space.blocks_of(stage, depth)
            for block in range(space.blocks_of(stage, space.depth[stage][-1])):
                value = next(entries) if block < present else None
                row += [float(value == choice) for choice in choices]
    return np.array(row)


class AccuracyPredictor:
    """Fitted to measured subnets; `quality` is how well it foretells those it has not seen."""

    def __init__(self, space: SearchSpace, cost_of: CostOf, measured: Mapping[Arch, float]):
        """`measured` are accuracies (fractions). Raises ValueError for fewer than ten."""
        if len(measured) < MIN_MEASURED:
            raise ValueError(
                f"a predictor needs at least {MIN_MEASURED} subnets, got {len(measured)}"
            )
        self._space, self._cost_of = space, cost_of
        x = np.stack([features(space, arch, cost_of(arch)) for arch in measured])
        y = np.array(list(measured.values()))
        self._fit = _ridge(x, y)
        self.quality = _cross_validate(x, y)

    def __call__(self, archs: Sequence[Arch]) -> np.ndarray:
        """(N,) predicted accuracies."""
        rows = [features(self._space, arch, self._cost_of(arch)) for arch in archs]
        return self._fit(np.stack(rows))


class LatencyPredictor:
    """Seconds of a batch on any subnet, from the subnets of a profile.

    Of a decoder it is seconds of an iteration of decodes, which a few tokens do not fill: what
    counts are the weights that it reads, all else is the same for every subnet.
    """

    def __init__(
        self,
        space: SearchSpace,
        cost_of: CostOf,
        measured_s: Mapping[Arch, float],
        *,
        of_iterations: bool = False,
    ):
        """Raises ValueError for fewer than five subnets, three of a decoder."""
        self._space, self._cost_of, self._of_iterations = space, cost_of, of_iterations
        fewest = 3 if of_iterations else 5  # one more than there are coefficients
        if len(measured_s) < fewest:
            raise ValueError(
                f"the profile has {len(measured_s)} subnets of this space; to foretell the latency "
                f"of others it needs at least {fewest} (supernet profile of a checkpoint with more "
                "subnets)"
            )
        self._measured_s = dict(measured_s)
        x = np.stack([self._row(arch) for arch in measured_s])
        y = np.array(list(measured_s.values()))
        self._weights = _non_negative(x, y)
        left_out = [
            _non_negative(np.delete(x, i, 0), np.delete(y, i)) @ x[i] for i in range(len(y))
        ]
        self.relative_error = float(np.mean(np.abs(left_out - y) / y))

    def __call__(self, arch: Arch) -> float:
        """Seconds: as profiled where it was, else foretold.

        Of iterations all are foretold, so that a pattern of widths that reads more never seems
        cheaper than one that was profiled in a slow moment.
        """
        if arch in self._measured_s and not self._of_iterations:
            return self._measured_s[arch]
        return float(self._weights @ self._row(arch))

    def _row(self, arch: Arch) -> np.ndarray:
        macs, params = self._cost_of(arch)
        if self._of_iterations:
            return np.array([1.0, params / 1e6])
        blocks = sum(self._space.blocks_of(s, d) for s, d in enumerate(arch.depth))
        return np.array([1.0, macs / 1e6, params / 1e6, blocks])


def _ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clipped = np.clip(y, 1e-3, 1 - 1e-3)
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 3, 16)))
    model.fit(x, np.log(clipped / (1 - clipped)))
    return lambda rows: 1.0 / (1.0 + np.exp(-model.predict(rows)))


def _cross_validate(x: np.ndarray, y: np.ndarray) -> Quality:
    from scipy.stats import kendalltau

    fold = np.arange(len(y)) % _FOLDS
    foretold = np.empty_like(y)
    for i in range(_FOLDS):
        foretold[fold == i] = _ridge(x[fold != i], y[fold != i])(x[fold == i])
    tau: Any = kendalltau(foretold, y)[0]  # scipy declares a union of result types
    order = float(tau) if np.isfinite(tau) else None
    return Quality(order, float(np.abs(foretold - y).mean()))


def _non_negative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    scale = 1.0 / y  # relative errors count, not seconds
    return nnls(x * scale[:, None], np.ones_like(y))[0]
