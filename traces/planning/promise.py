"""`Promise`: what a fleet must reach on a trace, and whether any fleet of a profile could."""

from __future__ import annotations

import re
from typing import NamedTuple

from slackfit.profile import LatencyProfile
from traces.trace import TraceError

_STREAMED = ("first_output", "period", "fluidity")


class Promise(NamedTuple):
    """At least so many of all queries on time, at such a mean accuracy of those: fractions."""

    attainment: float
    accuracy: float = 0.0

    def is_kept(self, attainment: float, accuracy: float) -> bool:
        """Whether a run with these keeps it."""
        return attainment >= self.attainment and accuracy >= self.accuracy

    def __str__(self) -> str:
        return f"attainment>={self.attainment:g},accuracy>={self.accuracy:g}"


def parse_promise(text: str) -> Promise:
    """Return the promise of `attainment>=0.999,accuracy>=0.775`. Raises TraceError otherwise.

    >>> parse_promise("attainment>=0.99")
    Promise(attainment=0.99, accuracy=0.0)
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*>=\s*([0-9.]+)\s*", part)
        name = match[1] if match else ""
        if name in _STREAMED:
            raise TraceError(
                f"a promise on {name} is one of streams, which are not planned; allowed are "
                "attainment and accuracy"
            )
        if match is None or name not in Promise._fields or name in found:
            raise TraceError(
                f"promise {part!r} is not understood; give attainment>=FRACTION, and "
                "accuracy>=FRACTION if need be, as in attainment>=0.999,accuracy>=0.775"
            )
        try:
            found[name] = float(match[2])
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] <= 1:
            raise TraceError(f"{name}>={match[2]} is no fraction, allowed 0 to 1")
    if not found.get("attainment", 0.0) > 0:
        raise TraceError(f"promise {text!r} names no attainment above 0, as in attainment>=0.999")
    return Promise(**found)


def impossible_part(promise: Promise, profile: LatencyProfile, slo_s: float) -> str:
    """Return what no fleet of this profile can keep and the nearest it can; empty: nothing."""
    best = max(subnet.accuracy for subnet in profile.subnets)
    if promise.accuracy > best:
        return (
            f"accuracy>={promise.accuracy:g} is impossible with profile {profile.name!r}: its most "
            f"accurate subnet has {best:g}; the nearest possible is accuracy>={best:g}"
        )
    least_s = profile.fastest().latency_s[1]
    if least_s > slo_s:
        return (
            f"attainment>={promise.attainment:g} is impossible with profile {profile.name!r} and "
            f"deadlines of {slo_s * 1e3:g} ms: the fastest subnet takes {least_s * 1e3:g} ms for "
            f"one query; the nearest possible deadline is that"
        )
    accurate_s = min(
        profile.table()[subnet.subnet_id][1]
        for subnet in profile.subnets
        if subnet.accuracy >= promise.accuracy
    )
    if accurate_s > slo_s and promise.accuracy > 0:
        reachable = [
            s.accuracy for s in profile.subnets if profile.table()[s.subnet_id][1] <= slo_s
        ]
        return (
            f"accuracy>={promise.accuracy:g} is impossible with profile {profile.name!r} and "
            f"deadlines of {slo_s * 1e3:g} ms: such a subnet takes {accurate_s * 1e3:g} ms for one "
            f"query; the nearest possible is accuracy>={max(reachable):g}, or deadlines of "
            f"{accurate_s * 1e3:g} ms"
        )
    return ""
