"""The pace: worker seconds that each query may take, if all demands are to be met.

A demand is (horizon, queries that must have left by then, arrivals among them). The workers supply
the sum of (horizon - time until free) by then; the pace is the least supply / demand. The reserve
is what a burst leaves over: the arrivals plus some standard deviations are served by the fastest
subnet, and the rest of the supply is shared out among those that wait.

`pace_alone` is that and nothing else. `pace_shared` counts the other models of the device
(`Others`) and takes off what is served apart (`Apart`); without either it is the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple

from slackfit.policies.apart import Apart
from slackfit.policies.forecast import Arrivals
from slackfit.policies.others import Others
from slackfit.policy import WorkerView


class DueBy(NamedTuple):
    """Samples that must have left `horizon_s` from now; `arrivals` are those yet to come."""

    horizon_s: float
    num_due: float
    arrivals: Arrivals | None = None


class Pace(NamedTuple):
    """Worker seconds per query: what the demands allow, and what the reserve does."""

    pace_s: float
    reserved_s: float


class Supply:
    """What the workers have to give from now on."""

    __slots__ = ("_free_s", "_until_s", "next_free_s")

    def __init__(self, workers: Sequence[WorkerView], now_s: float, lead_s: float) -> None:
        """Begin `lead_s` after each worker is free: so much a deadline may cut off."""
        free_s = [max(worker.busy_until_s - now_s, 0.0) + lead_s for worker in workers]
        self._free_s = sorted(free_s)
        self._until_s = [0.0, *accumulate(self._free_s)]
        #: Seconds until another worker than the first is free; inf of one alone.
        self.next_free_s = self._free_s[1] - lead_s if len(free_s) > 1 else inf

    def until(self, horizon_s: float) -> float:
        """Return the worker seconds that there are up to `horizon_s` from now."""
        known = bisect_left(self._free_s, horizon_s)
        return known * horizon_s - self._until_s[known]


def pace_alone(
    demands: Sequence[DueBy], supply: Supply, num_waiting: int, query_s: float, reserve: float
) -> Pace:
    """Return the pace of `num_waiting` queries; the fastest subnet takes `query_s` each."""
    pace_s = reserved_s = inf
    for horizon_s, count, arrivals in demands:
        supply_s = supply.until(horizon_s)
        if supply_s < pace_s * count:
            pace_s = supply_s / count
        if arrivals is not None:
            left_s = supply_s - query_s * (arrivals.mean + reserve * arrivals.sigma)
            if left_s < reserved_s * num_waiting:
                reserved_s = left_s / num_waiting
    return Pace(pace_s, reserved_s)


def pace_shared(
    demands: Sequence[DueBy],
    supply: Supply,
    num_waiting: int,
    query_s: float,
    reserve: float,
    others: Others,
    apart: Apart,
) -> Pace:
    """Return the pace of those of `num_waiting` that are not served apart."""
    pace_s = reserved_s = inf
    joint = num_waiting - apart.num_waiting
    share_joint = joint / num_waiting
    for horizon_s, count, arrivals in demands:
        supply_s = supply.until(horizon_s)
        needed_s = apart.needed_s(horizon_s, 1.0 if arrivals else count / num_waiting)
        theirs = others.count(horizon_s, supply_s)
        left_s = supply_s - needed_s
        if arrivals is None:
            ours = count * share_joint
        else:
            ours = joint + max(count - num_waiting - apart.arrivals(horizon_s), 0.0)
        due = ours + theirs
        if due > 0 and left_s < pace_s * due:  # 0: all that is due by then is served apart
            pace_s = left_s / due
        if arrivals is not None:
            burst = others.burst(arrivals, reserve, supply_s) - apart.arrivals(horizon_s)
            left_s -= query_s * burst
            waiting = joint + others.num_waiting
            if left_s < reserved_s * waiting:
                reserved_s = left_s / waiting
    return Pace(pace_s, reserved_s)
