"""What streams get with a device each: no fleet does better, so what that misses is impossible.

Its whole prompt in one iteration and then an iteration for each output, each at the width that is
fastest for it.
"""

from __future__ import annotations

from typing import NamedTuple

from slackfit.metrics import SLACK, as_good
from slackfit.streams.fluidity import FluidityCount
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_query import FLUENT
from traces.planning.promise import rounded_down
from traces.planning.streams.stream_promise import StreamPromise
from traces.trace import Trace

_LONGEST = 2.0**20  # times the due times
_PRECISION = 0.01


class Alone(NamedTuple):
    """The share of streams that are fluent, and the mean fluidity."""

    attainment: float
    fluidity: float

    def reach(self, promise: StreamPromise) -> bool:
        """Whether that is as much as is promised."""
        is_fluent = self.attainment >= as_good(promise.attainment)
        return is_fluent and self.fluidity >= as_good(promise.fluidity)


def alone(costs: IterationCosts, trace: Trace, promise: StreamPromise) -> Alone:
    """Return what the streams of a trace come to with a device each."""
    assert trace.prompt_tokens is not None
    assert trace.output_tokens is not None
    found: list[float] = []
    decode_s: dict[int, float] = {}
    lengths = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    for prompt, outputs in lengths:
        due_s = promise.first_output_s + promise.first_output_per_token_s * prompt
        count = FluidityCount(due_s, promise.period_s)
        now_s = _fastest_s(costs, IterationWork.of([(0, prompt, True)]))
        count.note(now_s)
        for context in range(prompt, prompt + outputs - 1):
            if context not in decode_s:
                decode_s[context] = _fastest_s(costs, costs.decode_work([context]))
            now_s += decode_s[context]
            count.note(now_s)
        found.append(1.0 - count.missed / count.due if count.due else 0.0)
    streams = max(len(found), 1)
    return Alone(sum(f >= FLUENT for f in found) / streams, sum(found) / streams)


def impossible_streams(
    costs: IterationCosts, trace: Trace, promise: StreamPromise, device: str
) -> str:
    """Return what no number of a device can keep and the nearest it can; empty: nothing."""
    best = max(rung.quality for rung in costs.rungs)
    if as_good(promise.accuracy) > best:
        return (
            f"accuracy>={promise.accuracy:g} is impossible with device {device!r}: its best width "
            f"has {best:g}; the nearest possible is accuracy>={rounded_down(best):g}"
        )
    reached = alone(costs, trace, promise)
    if reached.reach(promise):
        return ""
    name = "fluidity" if reached.attainment >= as_good(promise.attainment) else "attainment"
    wanted, nearest = getattr(promise, name), rounded_down(getattr(reached, name), SLACK)
    factor = _stretch(costs, trace, promise)
    return (
        f"{name}>={wanted:g} is impossible with device {device!r} and these due times: with a "
        f"device for each stream it is {nearest:g}; the nearest possible is {name}>={nearest:g}"
        f", or first_output and period {factor:.2f} times as long"
    )


def _stretch(costs: IterationCosts, trace: Trace, promise: StreamPromise) -> float:
    """Return how many times longer due times must be for the promise to be possible."""

    def is_reached(factor: float) -> bool:
        longer = promise._replace(
            first_output_s=promise.first_output_s * factor, period_s=promise.period_s * factor
        )
        return alone(costs, trace, longer).reach(promise)

    low, high = 1.0, 2.0
    while high < _LONGEST and not is_reached(high):
        low, high = high, 2 * high
    while high - low > _PRECISION * low:
        middle = (low + high) / 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return high


def _fastest_s(costs: IterationCosts, work: IterationWork) -> float:
    return min(rung.seconds(work) for rung in costs.rungs)
