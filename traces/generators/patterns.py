"""More seeded generators: traffic whose rate switches, follows the day, steps or flashes.

All but `mmpp` are renewal streams with gamma gaps in operational time: unit-rate renewals mapped
through the inverse of the cumulative rate, so that the mean count in any interval is the integral
of the rate, and squared coefficient of variation 1 is an inhomogeneous Poisson process.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from traces.generators.arrivals import (
    TOO_MANY,
    check_above_zero,
    check_cv2,
    renewals,
    synthetic,
)
from traces.memory import check_arrivals
from traces.trace import FloatArray, Trace, TraceError

_GRID = 4096
"""Points of the cumulative rate; between them the rate counts as constant."""


def mmpp(
    low_qps: float,
    high_qps: float,
    low_s: float,
    high_s: float,
    duration_s: float,
    *,
    seed: int = 0,
) -> Trace:
    """Return a two-state Markov-modulated Poisson process.

    It stays exponentially long in each state, `low_s` and `high_s` seconds in the mean, and starts
    in either with its long-run probability.
    """
    check_above_zero(high=high_qps, low_s=low_s, high_s=high_s, duration=duration_s)
    if not (math.isfinite(low_qps) and 0 <= low_qps <= high_qps):
        raise TraceError(f"low must be from 0 to high = {high_qps:g} queries/s, got {low_qps:g}")
    mean_qps = (low_qps * low_s + high_qps * high_s) / (low_s + high_s)
    states = duration_s / (low_s + high_s)
    check_arrivals(max(mean_qps * duration_s, 4 * states), TOO_MANY)
    rng = np.random.default_rng(seed)
    is_high = rng.random() < high_s / (low_s + high_s)
    edges, rates = [0.0], []
    while edges[-1] < duration_s:
        rates.append(high_qps if is_high else low_qps)
        edges.append(edges[-1] + rng.exponential(high_s if is_high else low_s))
        is_high = not is_high
    edges[-1] = duration_s
    edges_s = np.array(edges)
    counts = rng.poisson(np.array(rates) * np.diff(edges_s))
    starts = np.repeat(edges_s[:-1], counts)
    arrival_s = np.sort(starts + rng.random(starts.size) * np.repeat(np.diff(edges_s), counts))
    return synthetic(
        "mmpp",
        arrival_s,
        duration_s,
        seed,
        low_qps=low_qps,
        high_qps=high_qps,
        low_s=low_s,
        high_s=high_s,
    )


def mmpp_dispersion(
    low_qps: float, high_qps: float, low_s: float, high_s: float, window_s: float
) -> float:
    """Return the index of dispersion of that process's counts in windows of `window_s` seconds.

    The rate's autocovariance is var * exp(-k t) with k = 1/low_s + 1/high_s (Heffes and Lucantoni
    1986, for two states).

    >>> round(mmpp_dispersion(100, 100, 1, 1, 10), 3)
    1.0
    """
    share = high_s / (low_s + high_s)
    mean_qps = low_qps + share * (high_qps - low_qps)
    variance = share * (1 - share) * (high_qps - low_qps) ** 2
    k = 1 / low_s + 1 / high_s
    within = 2 * variance / (mean_qps * k) * (1 + math.expm1(-k * window_s) / (k * window_s))
    return 1 + within


def diurnal(
    rate_qps: float,
    peak_to_mean: float,
    duration_s: float,
    *,
    period_s: float | None = None,
    cv2: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Return traffic whose rate follows the day: a cosine from night to noon to night.

    The rate starts lowest, peaks at `peak_to_mean` (1 to 2) times the mean half a `period_s`
    later (None: one period over the whole duration).
    """
    if not 1 <= peak_to_mean <= 2:
        raise TraceError(f"peak is a multiple of the mean rate from 1 to 2, got {peak_to_mean:g}")
    period_s = duration_s if period_s is None else period_s
    check_above_zero(rate=rate_qps, duration=duration_s, period=period_s)

    def rate(t_s: FloatArray) -> FloatArray:
        return rate_qps * (1 - (peak_to_mean - 1) * np.cos(2 * math.pi * t_s / period_s))

    arrival_s = _following(rate, duration_s, cv2, seed, finest_s=period_s / 256)
    return synthetic(
        "diurnal",
        arrival_s,
        duration_s,
        seed,
        rate_qps=rate_qps,
        peak_to_mean=peak_to_mean,
        period_s=period_s,
        cv2=cv2,
    )


def step(
    before_qps: float,
    after_qps: float,
    at_s: float,
    duration_s: float,
    *,
    cv2: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Return traffic whose rate jumps from `before_qps` to `after_qps` at `at_s`."""
    check_above_zero(before=before_qps, after=after_qps, at=at_s, duration=duration_s)
    if at_s >= duration_s:
        raise TraceError(f"at {at_s:g} s must lie before the end, duration {duration_s:g} s")
    edges_s = np.array([0.0, at_s, duration_s])
    arrival_s = _piecewise(edges_s, np.array([before_qps, after_qps]), cv2, seed)
    return synthetic(
        "step",
        arrival_s,
        duration_s,
        seed,
        before_qps=before_qps,
        after_qps=after_qps,
        at_s=at_s,
        cv2=cv2,
    )


def flash(
    rate_qps: float,
    peak_qps: float,
    at_s: float,
    rise_s: float,
    decay_s: float,
    duration_s: float,
    *,
    cv2: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Return a flash crowd: from `at_s` the rate climbs to `peak_qps` in `rise_s`, then decays.

    The climb is straight, the way back exponential with time constant `decay_s`.
    """
    check_above_zero(rate=rate_qps, peak=peak_qps, rise=rise_s, decay=decay_s, duration=duration_s)
    if not 0 <= at_s < duration_s or peak_qps < rate_qps:
        raise TraceError(
            f"a flash crowd starts inside the trace and rises: at {at_s:g} s must be in "
            f"[0, {duration_s:g}) and peak {peak_qps:g} at least rate {rate_qps:g}"
        )

    def rate(t_s: FloatArray) -> FloatArray:
        since_s = t_s - at_s
        climb = np.clip(since_s / rise_s, 0.0, 1.0)
        fall = np.exp(-np.maximum(since_s - rise_s, 0.0) / decay_s)
        return rate_qps + (peak_qps - rate_qps) * climb * fall

    finest_s = min(rise_s, decay_s) / 32
    arrival_s = _following(rate, duration_s, cv2, seed, finest_s=finest_s)
    return synthetic(
        "flash",
        arrival_s,
        duration_s,
        seed,
        rate_qps=rate_qps,
        peak_qps=peak_qps,
        at_s=at_s,
        rise_s=rise_s,
        decay_s=decay_s,
        cv2=cv2,
    )


def _following(
    rate: Callable[[FloatArray], FloatArray],
    duration_s: float,
    cv2: float,
    seed: int,
    *,
    finest_s: float,
) -> FloatArray:
    """Return arrivals at a rate that is a function of time, constant over a fine grid."""
    points = max(_GRID, min(math.ceil(duration_s / finest_s), 1_000_000))
    edges_s = np.linspace(0.0, duration_s, points + 1)
    return _piecewise(edges_s, rate((edges_s[:-1] + edges_s[1:]) / 2), cv2, seed)


def _piecewise(edges_s: FloatArray, rates_qps: FloatArray, cv2: float, seed: int) -> FloatArray:
    check_cv2(cv2)
    expected = np.concatenate([[0.0], np.cumsum(rates_qps * np.diff(edges_s))])
    unit = renewals(float(expected[-1]), cv2, np.random.default_rng(seed))
    return np.maximum.accumulate(np.interp(unit, expected, edges_s))
