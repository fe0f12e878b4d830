"""Online correction of a profile: what a batch takes here is `factor` x profiled + `delay_s`.

A profile is measured on a quiet device; under load the same device shares its cores, its memory
and its clock with the door and with others. Some of that is in proportion to the work (a slower
clock), some is not: waiting for a core or the interpreter costs a batch of one millisecond as much
as one of thirty. So two numbers are learned. With a factor alone, short batches that wait make the
long ones look hopeless; a policy that then keeps to short batches never sees that they are not.

Both follow a high quantile of the observed latency by stochastic approximation (Robbins and Monro,
1951): a batch above its prediction raises them a little, one below lowers them less, so that in the
long run the asked-for share of batches stays below. How much of a step each takes depends on the
batch: where its profiled latency is long beside `_long_s` it speaks for the factor, where it is
short for the delay. O(1) per batch, no history.

The factor begins where a profile with a p95 puts it, at the median of its ratios to the p50: the
first batches under load are late otherwise, before anything is learned.

Both are used in steps, so that a policy lays out its tables anew only when something has changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.work_mix import WorkMix

QUANTILE = 0.9
_TAIL = "p95"  # the nearest that profiles have
_RATE = 0.05
_STEP = math.log(1.1)
_BOUND = math.log(8.0)
_DELAY_STEPS = 20  # per `_long_s`
_DELAY_BOUND = 4.0  # in `_long_s`
_HYSTERESIS = 0.75  # of a step: do not swing between two levels
_MAX_KEPT = 64


class LatencyCorrection:
    """The correction of one profile; deterministic in the batches that it observes."""

    def __init__(
        self,
        profile: LatencyProfile,
        latency_quantile: str,
        learned: LatencyCorrection | None = None,
    ) -> None:
        """Begin where the profile's tail says, or where the correction of other subnets was.

        What was learned is of the device: subnets that are offered instead run on the same one.
        """
        self._profile = profile
        self._table = profile.table(latency_quantile)
        self._mix = WorkMix.of(profile, latency_quantile)
        self._long_s = max(row[1] for row in self._table.values())  # batch 1, slowest subnet
        if learned is None:
            self._log_factor = math.log(_tail_ratio(profile, latency_quantile))
            self._delay = 0.0  # in `_long_s`
        else:
            self._log_factor = learned._log_factor
            delay = learned._delay * learned._long_s / self._long_s
            self._delay = min(_DELAY_BOUND, delay)
        self._level = 0
        self._delay_level = 0
        self._known: dict[tuple[int, int], LatencyProfile] = {(0, 0): profile}
        self._settle()

    @property
    def given(self) -> LatencyProfile:
        """The profile that is corrected, as it was measured."""
        return self._profile

    @property
    def profile(self) -> LatencyProfile:
        """The profile as corrected by the numbers in use."""
        return self._known[self._level, self._delay_level]

    @property
    def factor(self) -> float:
        """The factor in use, a power of 1.1 within 1/8 to 8."""
        return math.exp(self._level * _STEP)

    @property
    def delay_s(self) -> float:
        """The delay in use: 0 or more."""
        return self._delay_level * self._long_s / _DELAY_STEPS

    def corrected(self, profile: LatencyProfile) -> LatencyProfile:
        """Return another profile of the same device, as corrected by the numbers in use."""
        return profile.scaled(self.factor, self.delay_s)

    def observe(
        self,
        subnet_id: str,
        batch_size: int,
        latency_s: float,
        queries: Sequence[Query] = (),
    ) -> LatencyProfile | None:
        """Take in one batch; return the corrected profile when a number in use changed.

        Where the profile knows of work, the batch is compared with what its `queries` should take.

        A batch on a subnet that the profile lacks (it was switched meanwhile) says nothing.
        """
        row = self._table.get(subnet_id)
        if row is None or latency_s <= 0 or batch_size >= len(row):
            return None
        profiled_s = row[batch_size]
        if self._mix is not None and queries:
            profiled_s = self._mix.latency_s(subnet_id, queries)
        predicted_s = math.exp(self._log_factor) * profiled_s + self._delay * self._long_s
        step = _RATE * (QUANTILE if latency_s > predicted_s else QUANTILE - 1.0)
        share = profiled_s / (profiled_s + self._long_s)
        if step < 0 and self._delay <= 0:
            share = 1.0  # only the factor is left to speak of a faster device
        self._log_factor = max(-_BOUND, min(_BOUND, self._log_factor + share * step))
        self._delay = max(0.0, min(_DELAY_BOUND, self._delay + (1.0 - share) * step))
        return self._settle()

    def _settle(self) -> LatencyProfile | None:
        """Bring the numbers in use up to those learned, where they are a whole step away."""
        level, delay_level = self._log_factor / _STEP, self._delay * _DELAY_STEPS
        used = (self._level, self._delay_level)
        if abs(level - self._level) >= _HYSTERESIS:
            self._level = round(level)
        if abs(delay_level - self._delay_level) >= _HYSTERESIS:
            self._delay_level = round(delay_level)
        key = (self._level, self._delay_level)
        if key == used:
            return None
        if key not in self._known:
            if len(self._known) >= _MAX_KEPT:
                self._known = {(0, 0): self._profile}
            self._known[key] = self._profile.scaled(self.factor, self.delay_s)
        return self._known[key]


def _tail_ratio(profile: LatencyProfile, latency_quantile: str) -> float:
    """Return how far the p95 is above the quantile in use, 1 where it is not profiled."""
    if not all(_TAIL in subnet.latency_s for subnet in profile.subnets):
        return 1.0
    low, high = profile.table(latency_quantile), profile.table(_TAIL)
    ratios = [b / a for i in low for a, b in zip(low[i][1:], high[i][1:], strict=True)]
    return max(1.0, median(ratios))
