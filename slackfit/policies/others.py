"""`Others`: what the other models of a shared device need, in the words of one model's plan.

Each model has a queue and a policy of its own, and the device goes to whoever is due first. So the
plan is one for all: the others' queries count as if they stood in this queue, each as so many of
ours as it takes device time at the least. Where they ask for more than their part, the device's
order gives them no more than that; so neither does the plan.

A batch can't be interrupted: the others wait for its end. It takes at most its part of the
tightest SLO, and a deadline may cut off a part of each other model's batch as well as of our own;
the busier the others are, the shorter their batches.

With one model it counts nothing, and the plan is what it is without.
"""

from __future__ import annotations

from math import inf, sqrt

from slackfit.policies.forecast import Arrivals
from slackfit.policy import DeviceLoad

_FANO = 4.0  # of the others' arrivals: what a forecast assumes before it has seen any
_SIGMAS = 0.5  # standard deviations of arrivals that the pace counts on
_LEAD = 0.7  # of a full batch, that each other model's batch may cut off a deadline, if idle
_OF_SLO = 0.5  # of the tightest SLO, that all models' batches may take one after the other


class Others:
    """Counts of other models' queries, in queries of ours at `query_s` device seconds each."""

    __slots__ = ("_arriving_qps", "_query_s", "_slo_s", "lead", "longest_batch_s", "num_models",
                 "num_waiting")  # fmt: skip

    def __init__(self, load: DeviceLoad, slo_s: float, query_s: float) -> None:
        self._slo_s = slo_s
        self._query_s = query_s
        self.num_models, waiting_s, arriving, others_slo_s = load
        self.num_waiting = waiting_s / query_s
        self._arriving_qps = arriving / query_s
        #: Full batches per worker that a deadline may cut off.
        self.lead = 1.0 + _LEAD * self.num_models * max(1.0 - arriving, 0.0) ** 2
        is_shared = self.num_models > 0
        #: How long a batch may take for the others' sake, in seconds.
        self.longest_batch_s = (
            _OF_SLO * min(others_slo_s, slo_s) / (self.num_models + 1) if is_shared else inf
        )

    def count(self, horizon_s: float, supply_s: float) -> float:
        """Return how many of theirs must have left by `horizon_s`, at most their part."""
        if not self.num_models:
            return 0
        if horizon_s <= self._slo_s:
            return min(self.num_waiting * horizon_s / self._slo_s, self._part(supply_s))
        mean = self._arriving_qps * (horizon_s - self._slo_s)
        return min(self.num_waiting + mean, self._part(supply_s)) + _SIGMAS * sqrt(_FANO * mean)

    def burst(self, ours: Arrivals, sigmas: float, supply_s: float) -> float:
        """Return how many arrive in a burst of so many standard deviations, ours and theirs."""
        if not self.num_models:
            return ours.mean + sigmas * ours.sigma
        mean = self._arriving_qps * (ours.horizon_s - self._slo_s)
        spread = sqrt(ours.sigma**2 + _FANO * mean)
        own_burst = ours.mean + sigmas * ours.sigma
        return min(ours.mean + mean + sigmas * spread, own_burst + self._part(supply_s))

    def _part(self, supply_s: float) -> float:
        """Queries that the others can be given of a supply at the most: equal parts."""
        part = self.num_models / (self.num_models + 1)
        return max(supply_s, 0.0) * part / self._query_s
