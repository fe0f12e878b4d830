"""Randomised mechanisms: with which probability each of some candidates is chosen, exactly.

Permute-and-flip (McKenna and Sheldon, "Permute-and-Flip: A New Mechanism for Differentially Private
Selection", NeurIPS 2020): go through the candidates in random order, accept one with probability
exp(epsilon x (u - u_max) / 2). The order as uniform arrival times t gives a closed form: i is
chosen if it accepts, and nobody before it did,

    P(i) = p_i x integral over t from 0 to 1 of prod_{j != i} (1 - t p_j),

a polynomial. Laplace (Dwork et al., TCC 2006): the utility of the best one and noise of scale
1 / epsilon, then the nearest candidate. Utilities are scaled to a range of 1. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import exp

import numpy as np

Probabilities = Callable[[Sequence[float], float], list[float]]


def scaled_utilities(accuracies: Sequence[float]) -> list[float]:
    """Return utilities from -1 (the least accurate) to 0 (the most accurate)."""
    best = max(accuracies)
    spread = best - min(accuracies)
    return [(accuracy - best) / spread if spread else 0.0 for accuracy in accuracies]


def permute_and_flip(utilities: Sequence[float], epsilon: float) -> list[float]:
    """Return the probability of each candidate; its cost is quadratic in their number."""
    best = max(utilities)
    accepted = [exp(epsilon * (u - best) / 2) for u in utilities]
    return [p * _integral(accepted[:i] + accepted[i + 1 :]) for i, p in enumerate(accepted)]


def laplace(utilities: Sequence[float], epsilon: float) -> list[float]:
    """Return the probability of each candidate; those of equal utility share theirs."""
    levels = sorted(set(utilities))
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    below = [0.0, *(_laplace_cdf((m - levels[-1]) * epsilon) for m in middles), 1.0]
    share = {
        level: (high - low) / sum(u == level for u in utilities)
        for level, (low, high) in zip(levels, pairwise(below), strict=True)
    }
    return [share[u] for u in utilities]


MECHANISMS: Mapping[str, Probabilities] = {
    "permute_and_flip": permute_and_flip,
    "laplace": laplace,
}


def cumulative(probabilities: Sequence[float]) -> tuple[float, ...]:
    """Return running sums; the last is just 1, so that a number below 1 finds a place."""
    sums = list(accumulate(probabilities))
    return (*sums[:-1], 1.0)


def _integral(others: Sequence[float]) -> float:
    """Return the integral over t from 0 to 1 of the product of (1 - t p)."""
    coefficients = np.ones(1)
    for p in others:
        coefficients = np.convolve(coefficients, (1.0, -p))
    return float(np.sum(coefficients / np.arange(1, len(coefficients) + 1)))


def _laplace_cdf(x: float) -> float:
    return 0.5 * exp(x) if x < 0 else 1.0 - 0.5 * exp(-x)
