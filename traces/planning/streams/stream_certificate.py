"""How many devices any policy of streams needs: the work that the promised share cannot do without.

Each token passes the linear layers, no cheaper than in the iteration that is best for a token;
each output passes the head, likewise; a decode reads its context, a prompt attends to itself.
Prompts run at the cheapest width, outputs at mixtures of widths that have the promised mean
quality. All of it ends by the last due time of a stream that still counts: one of fluidity f has
at most outputs / f periods.

Relaxed: iterations are divided at will, memory and chunks cost nothing, the future is known. Where
iterations run on several workers the bound is one device: their costs are no sum of these.
"""

from __future__ import annotations

import math

import numpy as np

from slackfit.metrics import as_good
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts
from slackfit.streams.stream_query import FLUENT
from traces.planning.streams.stream_promise import StreamPromise
from traces.trace import FloatArray, Trace

_BEYOND = 64  # times the last point of a curve: where one more token costs the last slope
_HALF = 0.5


def certify_streams(costs: IterationCosts, trace: Trace, promise: StreamPromise) -> int:
    """Return the least number of devices with which the promise could be kept."""
    if costs.parallel is not None or not len(trace):
        return 1
    work_s = np.sort(_least_work_s(costs, trace, as_good(promise.accuracy)))
    # Of a mean fluidity f at least 2f - 1 of the streams are at least half fluent.
    fluidity = as_good(promise.fluidity)
    cases = ((as_good(promise.attainment), FLUENT), (2 * fluidity - 1, _HALF))
    return max(1, *(_devices(work_s, share, _end_s(trace, promise, f)) for share, f in cases))


def _devices(work_s: FloatArray, share: float, end_s: float) -> int:
    served = math.ceil(max(share, 0.0) * len(work_s) - 1e-9)
    return math.ceil(float(work_s[:served].sum()) / end_s - 1e-9)


def _end_s(trace: Trace, promise: StreamPromise, fluidity: float) -> float:
    """Return when the last stream that is as fluent as that has ended."""
    assert trace.prompt_tokens is not None
    assert trace.output_tokens is not None
    first_s = promise.first_output_s + promise.first_output_per_token_s * trace.prompt_tokens
    ends_s = trace.arrival_s + first_s + trace.output_tokens / fluidity * promise.period_s
    return float(np.max(ends_s))


def _least_work_s(costs: IterationCosts, trace: Trace, quality: float) -> FloatArray:
    """Return the device seconds (N,) that each stream takes at the least.

    A mean quality binds all outputs together, and may be reached where outputs are cheapest: what
    it adds to each output is counted at the cheapest one's price.
    """
    assert trace.prompt_tokens is not None
    assert trace.output_tokens is not None
    prompts, outputs = trace.prompt_tokens.astype(float), trace.output_tokens.astype(float)
    prompts_s = np.min([_prompt_s(rung, prompts) for rung in costs.rungs], axis=0)
    by_width = np.array([_outputs_s(rung, prompts, outputs) for rung in costs.rungs])
    least_s = np.min(by_width, axis=0)
    times = [float(np.min(row / least_s)) for row in by_width]
    added = _hull([rung.quality for rung in costs.rungs], times, quality) - 1.0
    return prompts_s + least_s + outputs * float(np.min(least_s / outputs)) * added


def _hull(qualities: list[float], times: list[float], quality: float) -> float:
    """Return the least mean of `times` over mixtures of widths of that mean quality."""
    best = math.inf
    for low_quality, low in zip(qualities, times, strict=True):
        if low_quality >= quality:
            best = min(best, low)
        for high_quality, high in zip(qualities, times, strict=True):
            if high_quality >= quality > low_quality:
                share = (quality - low_quality) / (high_quality - low_quality)
                best = min(best, low + (high - low) * share)
    return best


def _prompt_s(rung: IterationCost, prompts: FloatArray) -> FloatArray:
    pairs = prompts * (prompts + 1) / 2
    return prompts * _token_s(rung) + pairs * min(rung.pair_s, rung.position_s)


def _outputs_s(rung: IterationCost, prompts: FloatArray, outputs: FloatArray) -> FloatArray:
    """Return the seconds of all outputs, the first of which comes with the prompt's last token."""
    decodes = outputs - 1
    read = decodes * prompts + decodes * (decodes + 1) / 2
    one_s = _token_s(rung) + rung.decode_s
    return outputs * _least_each_s(rung.head) + decodes * one_s + read * rung.position_s


def _token_s(rung: IterationCost) -> float:
    return _least_each_s(rung.linear, rung.fixed_s)


def _least_each_s(curve: CostCurve, fixed_s: float = 0.0) -> float:
    """Return the least seconds of one in an iteration, over how many there are in it."""
    last = curve.at[-1]
    counts = range(1, last + 1)
    slope_s = curve(_BEYOND * last + 1) - curve(_BEYOND * last)
    return min(slope_s, *((fixed_s + curve(count)) / count for count in counts))
