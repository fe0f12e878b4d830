"""The highest rate at which a policy still meets a goal, found by bisection.

The trace keeps its shape: another rate is the same arrivals closer together or further apart. Each
rate that is tried is simulated once with the same seed, so the answer repeats. Attainment falls
with the rate except for noise of the order of the trace's own, which bisection does not average.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from slackfit.metrics import as_good
from traces.trace import Trace, TraceError

_KEYS = ("attainment", "utility")
_MAX_DOUBLINGS = 24


class Goal(NamedTuple):
    """What must be reached: `key` (attainment or utility) at least `least`."""

    key: str
    least: float


class Capacity(NamedTuple):
    """The highest rate found to meet the goal (0: none does), and the tries."""

    rate_qps: float
    tried: tuple[tuple[float, float], ...]  # (rate, value), in order of trying


def parse_goal(text: str) -> Goal:
    """Return the goal that `attainment=0.999` names. Raises TraceError for anything else.

    >>> parse_goal("attainment=0.999")
    Goal(key='attainment', least=0.999)
    """
    found = re.fullmatch(rf"({'|'.join(_KEYS)})=(\d+\.?\d*|\.\d+)", text)
    if not found or not 0 < float(found[2]) <= 1:
        raise TraceError(
            f"target {text!r} is not understood; give {' or '.join(_KEYS)}=FRACTION, "
            "as in attainment=0.999"
        )
    return Goal(found[1], float(found[2]))


def find_capacity(
    trace: Trace, goal: Goal, measure: Callable[[Trace], float], *, precision: float = 0.01
) -> Capacity:
    """Return the highest rate at which `measure(trace at that rate)` meets the goal.

    Starts at the trace's own rate, doubles or halves until the goal lies between two rates, and
    bisects to a relative `precision`. A rate that 24 doublings or halvings do not bracket is given
    back as it is, or as 0.
    """
    tried: list[tuple[float, float]] = []

    def is_met(rate_qps: float) -> bool:
        value = measure(trace.rescale_rate(rate_qps))
        tried.append((rate_qps, value))
        return value >= as_good(goal.least)

    low = high = trace.rate_qps
    if is_met(low):
        for _ in range(_MAX_DOUBLINGS):
            high = 2 * low
            if not is_met(high):
                break
            low = high
    else:
        for _ in range(_MAX_DOUBLINGS):
            low = high / 2
            if is_met(low):
                break
            high = low
        else:
            return Capacity(0.0, tuple(tried))
    while high - low > precision * low:
        middle = (low + high) / 2
        low, high = (middle, high) if is_met(middle) else (low, middle)
    return Capacity(low, tuple(tried))
