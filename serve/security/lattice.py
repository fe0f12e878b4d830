"""`Lattice`: the few specifications that a defended server tells apart, and what each may get.

A specification is a tier (a floor on accuracy) and a multiple of the deadline grid. Its candidates
are the most accurate subnets that reach the floor and fit the deadline, as many as `spread`; which
of them serves is drawn (`mechanism.py`). They fit if one batch of each, and the longest once more,
take at most half of the time: then those who ask at once keep what they drew (`loose_pins.py`). (If
each alone had to fit in half of it, an attacker with eight queries open asked for the shortest
deadline and was given one subnet for 55 %: all drawn ones were let go.) A specification with fewer
than four is refused, since who asks for it would know the subnet. Pure: profile in, probabilities
out.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from math import ceil, floor
from typing import NamedTuple

from serve.config import ServeConfigError
from serve.models.deadline import MAX_ALLOWANCE
from serve.security.mechanism import MECHANISMS, cumulative, scaled_utilities
from serve.security_config import TIER_NAMES, SecurityConfig
from slackfit.profile import LatencyProfile

LEAST_CANDIDATES = 4
_FITTING_SHARE = 0.5  # of the time, see `loose_pins.py`
_LONGEST_STEPS = 10_000
_HUNDREDTHS = 100
_EQUAL = 1e-9
_HASTE = 0.02  # of a step; the scheduler works for the deadline that was given all the same


class Tier(NamedTuple):
    """A named floor on accuracy, a fraction."""

    name: str
    floor: float


class Specification(NamedTuple):
    """One specification: its tier, its deadline in steps of the grid, and its candidates.

    No answer leaves before `ready_steps`, by when each candidate would have been ready: else a
    small grid would tell the fast ones from the slow ones. Deadlines with the same candidates are
    one question: `key`, their digest, is what a draw is keyed by.
    """

    tier: Tier
    steps: int
    subnet_ids: tuple[str, ...]
    cumulative: tuple[float, ...]
    ready_steps: int
    key: bytes

    def chosen(self, uniform: float) -> str:
        """Return the candidate at a number of [0, 1)."""
        return self.subnet_ids[bisect_right(self.cumulative, uniform)]


class Lattice:
    """The specifications of one profile under one configuration.

    Raises ServeConfigError where a tier has too few subnets to hide among, however late the
    deadline.
    """

    def __init__(self, profile: LatencyProfile, config: SecurityConfig) -> None:
        self.profile = profile
        self.grid_s = config.grid_ms * 1e-3
        self._config = config
        pareto = profile.pareto()
        self._subnets = [
            (s.accuracy, s.subnet_id, profile.latency_s(s.subnet_id, 1)) for s in pareto.subnets
        ]
        self.tiers = _tiers(config, [accuracy for accuracy, _, _ in self._subnets])
        self._known: dict[tuple[str, int], Specification | None] = {}
        for tier in self.tiers:
            if self._find(tier, _LONGEST_STEPS) is None:
                have = sum(accuracy >= tier.floor for accuracy, _, _ in self._subnets)
                raise ServeConfigError(
                    f"security: tier {tier.name} (accuracy {tier.floor:g}) has {have} subnets, "
                    f"allowed {LEAST_CANDIDATES} or more: lower its floor or serve more subnets"
                )

    def tier_of(self, min_accuracy: float) -> Tier | None:
        """Return the lowest tier that keeps a floor; None where none does."""
        return next((tier for tier in self.tiers if tier.floor >= min_accuracy - _EQUAL), None)

    def steps_of(self, given_s: float) -> int:
        """Return how many steps of the grid a deadline is away, whole but for a client's haste.

        Clients say what is left when they send: microseconds less than a multiple that was meant.
        """
        return min(floor(given_s / self.grid_s + _HASTE), _LONGEST_STEPS)

    def specification(self, tier: Tier, steps: int) -> Specification | None:
        """Return a specification; None where too few subnets fit."""
        key = (tier.name, steps)
        if key not in self._known:
            if len(self._known) >= _LONGEST_STEPS:
                self._known.clear()
            self._known[key] = self._find(tier, steps)
        return self._known[key]

    def shortest_steps(self, tier: Tier) -> int:
        """Return the shortest deadline of a tier, in steps."""
        low, high = 0, _LONGEST_STEPS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._find(tier, middle) else (middle, high)
        return high

    def _find(self, tier: Tier, steps: int) -> Specification | None:
        usable_s = steps * self.grid_s * (1.0 - MAX_ALLOWANCE) * _FITTING_SHARE
        reaching = [subnet for subnet in self._subnets if subnet[0] >= tier.floor]
        candidates = _most_accurate(reaching, self._config.spread, usable_s)
        if candidates is None:
            return None
        utilities = scaled_utilities([accuracy for accuracy, _, _ in candidates])
        chances = MECHANISMS[self._config.mechanism](utilities, self._config.epsilon)
        ids = tuple(subnet_id for _, subnet_id, _ in candidates)
        ready_steps = ceil(_takes_s(candidates) / self.grid_s - _EQUAL)
        key = hashlib.blake2b(",".join(ids).encode(), digest_size=8).digest()
        return Specification(tier, steps, ids, cumulative(chances), ready_steps, key)


def _most_accurate(
    subnets: list[tuple[float, str, float]], spread: int, usable_s: float
) -> list[tuple[float, str, float]] | None:
    """Return `spread` neighbours on the front that fit, else fewer, but not fewer than four."""
    for size in range(min(spread, len(subnets)), LEAST_CANDIDATES - 1, -1):
        for end in range(len(subnets), size - 1, -1):
            window = subnets[end - size : end]
            if _takes_s(window) <= usable_s:
                return window
    return None


def _takes_s(subnets: list[tuple[float, str, float]]) -> float:
    """Return the time of one batch of each, and the longest once more, in seconds."""
    latencies_s = [latency_s for _, _, latency_s in subnets]
    return sum(latencies_s) + max(latencies_s)


def _tiers(config: SecurityConfig, accuracies: list[float]) -> tuple[Tier, ...]:
    """Return the tiers, lowest floor first; those laid out have floors in whole percent."""
    given: Mapping[str, float]
    if isinstance(config.tiers, dict):
        given = config.tiers
    else:
        last = max(0, len(accuracies) - config.spread)
        parts = max(1, config.tiers - 1)
        places = [round(last * part / parts) for part in range(config.tiers)]
        given = {
            name: _rounded_down(accuracies[place])
            for name, place in zip(TIER_NAMES, places, strict=False)
        }
    return tuple(sorted((Tier(*item) for item in given.items()), key=lambda tier: tier.floor))


def _rounded_down(accuracy: float) -> float:
    """Return an accuracy in whole percent; never above it, not even by a rounding error."""
    return min(accuracy, floor(accuracy * _HUNDREDTHS + _EQUAL) / _HUNDREDTHS)
