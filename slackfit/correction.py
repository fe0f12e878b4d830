"""Online correction of a profile: one factor between predicted and observed latencies.

A profile is measured on a quiet device; under load the same device shares its cores, its memory
and its clock with the door and with others, and every batch takes longer than profiled. The
correction follows a high quantile of observed / predicted by stochastic approximation (Robbins and
Monro, 1951): a batch above the factor raises it a little, one below lowers it less, so that in
the long run the asked-for share of batches stays below. O(1) per batch, no history.

The factor is used in steps of 10 %, so that a policy lays out its tables anew only when something
has changed.
"""

from __future__ import annotations

import math

from slackfit.profile import LatencyProfile

QUANTILE = 0.9
_RATE = 0.05
_STEP = math.log(1.1)
_BOUND = math.log(8.0)


class LatencyCorrection:
    """The factor for one profile; deterministic in the batches that it observes."""

    def __init__(self, profile: LatencyProfile, latency_quantile: str) -> None:
        self._profile = profile
        self._table = profile.table(latency_quantile)
        self._log_factor = 0.0
        self._level = 0
        self._scaled: dict[int, LatencyProfile] = {0: profile}

    @property
    def factor(self) -> float:
        """The factor in use, a power of 1.1 within 1/8 to 8."""
        return math.exp(self._level * _STEP)

    def observe(self, subnet_id: str, batch_size: int, latency_s: float) -> LatencyProfile | None:
        """Take in one batch; return the corrected profile when the factor in use changed.

        A batch on a subnet that the profile lacks (it was switched meanwhile) says nothing.
        """
        row = self._table.get(subnet_id)
        if row is None or latency_s <= 0 or batch_size >= len(row):
            return None
        is_above = math.log(latency_s / row[batch_size]) > self._log_factor
        self._log_factor += _RATE * (QUANTILE if is_above else QUANTILE - 1.0)
        self._log_factor = max(-_BOUND, min(_BOUND, self._log_factor))
        if abs(self._log_factor - self._level * _STEP) < 0.75 * _STEP:
            return None  # hysteresis: do not swing between two levels
        self._level = round(self._log_factor / _STEP)
        if self._level not in self._scaled:
            self._scaled[self._level] = self._profile.scaled(self.factor)
        return self._scaled[self._level]
