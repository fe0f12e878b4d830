"""What is possible with a device for each query: no fleet does better, so the rest is impossible.

A query alone is served at once by any subnet that is done within its deadline. So attainment can't
be more than the share of deadlines that some allowed subnet keeps, nor the mean accuracy more than
that of the best subnets of as many queries as must be on time.
"""

from __future__ import annotations

import math

import numpy as np

from slackfit.metrics import SLACK, as_good
from slackfit.profile import LatencyProfile
from traces.planning.promise import PartPromise, Promise, rounded_down
from traces.planning.traffic import Traffic
from traces.trace import FloatArray


def impossible_part(promise: Promise, profile: LatencyProfile, traffic: Traffic) -> str:
    """Return what no fleet of this profile can keep and the nearest it can; empty: nothing."""
    fault = _impossible("", promise, promise.floor, profile, np.atleast_1d(traffic.slo_s))
    for part in promise.parts:
        own = np.atleast_1d(traffic.picked(traffic.groups[part.group]).slo_s)
        floor = max(part.floor, promise.floor)
        fault = fault or _impossible(f"{part.group}:", part, floor, profile, own)
    return fault


def _impossible(
    whose: str,
    wanted: Promise | PartPromise,
    floor: float,
    profile: LatencyProfile,
    deadlines_s: FloatArray,
) -> str:
    """Return why what is promised to these queries can't be kept; empty: it may."""
    if not len(deadlines_s):
        return ""  # to nobody anything is kept
    best = max(subnet.accuracy for subnet in profile.subnets)
    for name, value in (("accuracy", as_good(wanted.accuracy)), ("floor", floor)):
        if value > best:
            nearest = f"{whose}{name}>={rounded_down(best):g}"
            return (
                f"{whose}{name}>={value:g} is impossible with profile {profile.name!r}: its most "
                f"accurate subnet has {best:g}; the nearest possible is {nearest}"
            )
    share = _share_served(profile, floor, deadlines_s)
    if share < as_good(wanted.attainment):
        return _too_short(whose, wanted.attainment, floor, share, profile, deadlines_s)
    reached = _best_mean(profile, floor, wanted.attainment, deadlines_s)
    if reached < as_good(wanted.accuracy):
        accurate_s = _least_s(profile, wanted.accuracy)
        nearest = [f"deadlines of {accurate_s * 1e3:g} ms"]
        if reached > 0:
            nearest.insert(0, f"{whose}accuracy>={rounded_down(reached, SLACK):g}")
        return (
            f"{whose}accuracy>={wanted.accuracy:g} is impossible with profile {profile.name!r} and "
            f"{_range(deadlines_s)}: such a subnet takes {accurate_s * 1e3:g} ms for one query; "
            f"the nearest possible is {', or '.join(nearest)}"
        )
    return ""


def _too_short(
    whose: str,
    attainment: float,
    floor: float,
    share: float,
    profile: LatencyProfile,
    deadlines_s: FloatArray,
) -> str:
    """Say that too few deadlines are as long as the fastest allowed subnet takes."""
    least_s = _least_s(profile, floor)
    who = f"the fastest subnet of accuracy {floor:g} or more" if floor else "the fastest subnet"
    nearest = [f"deadlines of {least_s * 1e3:g} ms"]
    lower = [
        s.accuracy
        for s in profile.subnets
        if s.accuracy < floor
        and _share_served(profile, s.accuracy, deadlines_s) >= as_good(attainment)
    ]
    if lower:
        nearest.insert(0, f"{whose}floor>={rounded_down(max(lower)):g}")
    if share > 0:
        nearest.insert(0, f"{whose}attainment>={rounded_down(share, SLACK):g}")
    return (
        f"{whose}attainment>={attainment:g} is impossible with profile {profile.name!r} and "
        f"{_range(deadlines_s)}: {who} takes {least_s * 1e3:g} ms for one query; the nearest "
        f"possible is {', or '.join(nearest)}"
    )


def _share_served(profile: LatencyProfile, floor: float, deadlines_s: FloatArray) -> float:
    return float(np.mean(deadlines_s >= _least_s(profile, floor)))


def _best_mean(
    profile: LatencyProfile, floor: float, attainment: float, deadlines_s: FloatArray
) -> float:
    """Return the highest mean accuracy of so large a share of these queries, each served alone.

    Of a share of 0, that of the one query that is served best.
    """
    served = np.full(len(deadlines_s), -1.0)
    for subnet in profile.subnets:
        if subnet.accuracy >= floor:
            fits = deadlines_s >= alone_s(profile, subnet.subnet_id)
            served[fits] = np.maximum(served[fits], subnet.accuracy)
    count = max(1, math.ceil(as_good(attainment) * len(served) - SLACK))
    return float(np.mean(np.sort(served)[::-1][:count]))


def _least_s(profile: LatencyProfile, floor: float) -> float:
    """Return what a query takes at the least, of a subnet that is so accurate."""
    allowed = (s.subnet_id for s in profile.subnets if s.accuracy >= floor)
    return min(alone_s(profile, subnet_id) for subnet_id in allowed)


def alone_s(profile: LatencyProfile, subnet_id: str) -> float:
    """Return the least latency of a subnet, which is that of one query but in odd profiles."""
    return min(profile.table()[subnet_id][1:])


def _range(deadlines_s: FloatArray) -> str:
    low, high = float(np.min(deadlines_s)) * 1e3, float(np.max(deadlines_s)) * 1e3
    return f"deadlines of {low:g} ms" if low == high else f"deadlines of {low:g} to {high:g} ms"
