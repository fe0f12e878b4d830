"""Online correction of iteration costs: what an iteration takes here is `factor` x predicted.

As `LatencyCorrection` of batches: the factor follows a high quantile of the observed times by
stochastic approximation (Robbins and Monro, 1951), and is used in steps, so that policies lay out
their tables anew only when something has changed. One number suffices: an iteration is never as
short beside the waits of a loaded machine as a small batch is. O(1) per iteration.
"""

from __future__ import annotations

import math

from slackfit.streams.iteration_cost import IterationCosts

QUANTILE = 0.9
_RATE = 0.05
_STEP = math.log(1.1)
_BOUND = math.log(8.0)
_HYSTERESIS = 0.75  # of a step: do not swing between two levels


class CostCorrection:
    """The correction of one decoder's costs; deterministic in what it observes."""

    def __init__(self, costs: IterationCosts) -> None:
        """Begin with the costs as given."""
        self._log_factor = 0.0
        self._level = 0
        self._known: dict[int, IterationCosts] = {0: costs}

    @property
    def costs(self) -> IterationCosts:
        """The costs as corrected."""
        if self._level not in self._known:
            self._known[self._level] = self._known[0].scaled(self.factor)
        return self._known[self._level]

    @property
    def factor(self) -> float:
        """The factor in use, a power of 1.1 within 1/8 to 8."""
        return math.exp(self._level * _STEP)

    def observe(self, expected_s: float, taken_s: float) -> bool:
        """Take in an iteration predicted with the factor in use; whether that has changed."""
        if expected_s <= 0.0 or taken_s <= 0.0:
            return False
        needed = math.log(taken_s / expected_s) + self._level * _STEP
        step = _RATE * (QUANTILE if needed > self._log_factor else QUANTILE - 1.0)
        self._log_factor = min(max(self._log_factor + step, -_BOUND), _BOUND)
        if abs(self._log_factor - self._level * _STEP) < _HYSTERESIS * _STEP:
            return False
        self._level = round(self._log_factor / _STEP)
        return True

    def replaced(self, costs: IterationCosts) -> CostCorrection:
        """Return the correction of other costs of the same device, with what was learned."""
        other = CostCorrection(costs)
        other._log_factor, other._level = self._log_factor, self._level
        return other
