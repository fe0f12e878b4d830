"""The certificate: how many devices any policy needs, by what every schedule must respect.

Three bounds, the largest counts; none looks at a policy, so no fleet below it can keep the promise:

  mean      at least the promised share of all queries is served, at the promised mean accuracy: no
            cheaper than the lower convex hull of (accuracy, device seconds a query) says;
  windows   the queries of a window end by its end and one deadline; all but those that the promise
            lets go take the cheapest device seconds there are. Windows of 1, 2, 4, ... deadlines;
  program   the same for the busiest windows by the linear program of `slackfit.bounds.bound`, which
            sees when each query arrives and which batches it could be part of. Accuracy left out.

Relaxed (so a fleet at the certificate may not exist): batches are served in parts and in parallel,
every batch is as cheap as the best one, and a policy knows the future.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from slackfit.bounds.bound import utility_bound
from slackfit.metrics import as_good
from slackfit.profile import LatencyProfile
from traces.planning.promise import Promise
from traces.planning.traffic import Traffic

_PROGRAM_SLOS = 50  # length of a window that the linear program sees
_MOST_STARTS = 20_000
_MOST_STEPS = 4  # devices that the program may add to the other bounds
_SLACK = 1e-9


class Certificate(NamedTuple):
    """Devices by each bound; `workers` is the largest."""

    mean: int
    windows: int
    program: int

    @property
    def workers(self) -> int:
        """The least number of devices that could keep the promise."""
        return max(self)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**self._asdict(), "workers": self.workers}


def certify(
    profile: LatencyProfile, traffic: Traffic, promise: Promise, *, programs: bool = True
) -> Certificate:
    """Return the certificate of a promise that is not impossible.

    Without `programs` the linear program, which takes longest, adds nothing. A group that is
    promised more is bounded like all others, as if nobody else came; below the floor nothing is
    counted.
    """
    profile = profile.select([s.subnet_id for s in profile.subnets if s.accuracy >= promise.floor])
    bounds = [_of_all(profile, traffic, promise, programs)]
    for part in promise.parts:
        floor = max(part.floor, promise.floor)
        own = traffic.picked(traffic.groups[part.group])
        bounds.append(
            certify(profile, own, Promise(part.attainment, part.accuracy, floor), programs=programs)
        )
    return Certificate(*(max(values) for values in zip(*bounds, strict=True)))


def _of_all(
    profile: LatencyProfile, traffic: Traffic, promise: Promise, programs: bool
) -> Certificate:
    """Return the certificate of what is promised to all."""
    count = len(traffic.arrival_s)
    if not count:  # of a group, where the traffic is part of a trace
        return Certificate(1, 1, 1)
    longest_s = float(np.max(traffic.slo_s))
    mean = by_mean_rate(profile, count, traffic.duration_s + longest_s, promise)
    fastest_s = 1.0 / profile.fastest().capacity_qps
    windows = _whole(window_demand_qps(traffic, promise) * fastest_s)
    known = max(mean, windows)
    program = _by_program(profile, traffic, promise, known) if programs else known
    return Certificate(mean, windows, program)


def by_mean_rate(
    profile: LatencyProfile, num_queries: float, length_s: float, promise: Promise
) -> int:
    """Return the bound `mean` of so many queries, all of which end within `length_s`."""
    eligible = [s.subnet_id for s in profile.subnets if s.accuracy >= promise.floor]
    one_s = query_s(profile.select(eligible), promise.accuracy)
    return _whole(as_good(promise.attainment) * num_queries * one_s / length_s)


def query_s(profile: LatencyProfile, accuracy: float) -> float:
    """Return the least device seconds of a query, if the mean accuracy is at least so high."""
    rows = profile.table()
    largest = profile.max_batch_size
    accuracy = as_good(accuracy)  # since a fleet is judged so, and one may fall short of its best
    points = sorted(
        (s.accuracy, min(rows[s.subnet_id][b] / b for b in range(1, largest + 1)))
        for s in profile.subnets
    )
    best = math.inf
    for low_accuracy, low_s in points:
        for high_accuracy, high_s in points:
            if high_accuracy < accuracy:
                continue
            share = 1.0
            if low_accuracy < accuracy:
                share = (accuracy - low_accuracy) / (high_accuracy - low_accuracy)
            elif low_accuracy >= accuracy:
                share = 0.0
            best = min(best, low_s + (high_s - low_s) * share)
    return best


def window_demand_qps(traffic: Traffic, promise: Promise) -> float:
    """Return the rate at which queries must end in the busiest of all windows; below 0: none must.

    A window's queries end by its end and one deadline, all but those that the promise lets go.
    Windows of 1, 2, 4, ... of the longest deadline.
    """
    arrival_s = traffic.arrival_s
    longest_s = float(np.max(traffic.slo_s))
    spared = promise.spared(len(arrival_s))
    # Windows begin at arrivals; at some of them where there are many, which only lowers the bound.
    places = np.arange(0, len(arrival_s), max(1, len(arrival_s) // _MOST_STARTS))
    starts_s = arrival_s[places]
    most_qps = -math.inf
    length_s = longest_s
    while length_s < 2 * traffic.duration_s:
        ends = np.searchsorted(arrival_s, starts_s + length_s, side="right")
        inside = int(np.max(ends - places))
        most_qps = max(most_qps, (inside - spared) / (length_s + longest_s))
        length_s *= 2
    return most_qps


def _by_program(profile: LatencyProfile, traffic: Traffic, promise: Promise, known: int) -> int:
    """Return `known`, or more where the busiest windows lose too many with so few."""
    spared = promise.spared(len(traffic.arrival_s))
    equal = replace(profile, subnets=tuple(replace(s, accuracy=1.0) for s in profile.subnets))
    longest_s = float(np.max(traffic.slo_s))
    share = min(_PROGRAM_SLOS * longest_s / traffic.duration_s, 1.0)
    window = traffic.busiest(share)
    if not len(window.arrival_s):
        return known
    for workers in range(known, known + _MOST_STEPS):
        bound = utility_bound(window.arrival_s, equal, slo_s=window.slo_s, num_workers=workers)
        if (1 - bound) * len(window.arrival_s) <= spared + 1e-6:
            return workers
    return known + _MOST_STEPS


def _whole(value: float) -> int:
    return max(1, math.ceil(max(value, 0.0) - _SLACK))
