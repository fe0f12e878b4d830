"""A generator with the published shape of an Azure Functions 2019 sample; it needs no file.

The sample is 500 functions over 480 minutes of day 1 (08:00-16:00), 50.2 / 105.5 / 126.7 requests a
second (min / mean / max over minutes). Studying it gave the constants below; no row of it is here.
Its rate per minute is, relative to the mean:

* a level that wanders: standard deviation 0.06, autocorrelation 0.58 at one minute;
* timers that fire together: the minute after each full hour is 0.10 above, after each half hour
  0.056, after each other five minutes 0.022;
* a few minutes in which the busiest function (63 % of all calls) nearly stops: two dips of five
  minutes to about 0.5, one of a minute to 0.63, one of ten minutes to 0.8. These make the
  coefficient of variation 0.10 rather than 0.06.

What this is not: the sample itself. The wander and the places of the dips are drawn from the seed,
and the result is fitted to the published minimum and maximum.
"""

from __future__ import annotations

import numpy as np

from traces.sources.counts import squeeze
from traces.trace import FloatArray, Trace

MIN_TO_MEAN = 50.2 / 105.5
MAX_TO_MEAN = 126.7 / 105.5
NUM_MINUTES = 480
WANDER_SD = 0.06
WANDER_AR1 = 0.58
TIMER_SPIKES = ((60, 0.10), (30, 0.056), (5, 0.022))
"""(period in minutes, height); each spike is one minute wide, the longest period wins."""
DIPS = ((5, 0.50), (5, 0.52), (1, 0.63), (10, 0.80))
"""(length in minutes, level)."""


def minute_shape(seed: int = 0) -> FloatArray:
    """Return 480 rates relative to their mean, between the published minimum and maximum."""
    rng = np.random.default_rng(seed)
    shape = 1.0 + _wander(rng) + _timer_spikes()
    # One dip per quarter of the trace, in random order, so that they never overlap.
    quarter = NUM_MINUTES // len(DIPS)
    for part, dip in enumerate(rng.permutation(len(DIPS))):
        length, level = DIPS[dip]
        start = part * quarter + int(rng.integers(0, quarter - length))
        shape[start : start + length] *= level
    return _fitted(shape)


def azure2019_shape(
    rate_qps: float,
    duration_s: float,
    *,
    placement: str = "poisson",
    cv2: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return arrivals of that shape squeezed into `duration_s` seconds at mean `rate_qps`.

    Counts per minute are drawn by default (`poisson`): at a hundred queries a second a squeezed
    minute holds a dozen arrivals, and exact counts would be smoother than any real traffic.
    """
    return squeeze(
        minute_shape(seed),
        rate_qps=rate_qps,
        duration_s=duration_s,
        placement=placement,
        cv2=cv2,
        seed=seed,
        source="generator azure2019-shape",
        metadata={
            "synthetic": True,
            "generator": "azure2019-shape",
            "shape": "480 minutes drawn to match the published min/mean/max rate of an Azure "
            "Functions 2019 sample; not the sample itself",
        },
    )


def _wander(rng: np.random.Generator) -> FloatArray:
    steps = rng.normal(0.0, WANDER_SD * np.sqrt(1 - WANDER_AR1**2), NUM_MINUTES)
    level = np.empty(NUM_MINUTES)
    level[0] = rng.normal(0.0, WANDER_SD)
    for i in range(1, NUM_MINUTES):
        level[i] = WANDER_AR1 * level[i - 1] + steps[i]
    return level


def _timer_spikes() -> FloatArray:
    spikes = np.zeros(NUM_MINUTES)
    minute = np.arange(NUM_MINUTES)
    for period, height in reversed(TIMER_SPIKES):
        spikes[minute % period == 1] = height
    return spikes


def _fitted(shape: FloatArray) -> FloatArray:
    """Scale both sides of the mean onto the published extremes, keeping mean 1."""
    fitted = shape / shape.mean()
    for _ in range(50):  # scaling one side moves the mean; this settles within a few rounds
        above = fitted > 1
        fitted[above] = 1 + (fitted[above] - 1) * (MAX_TO_MEAN - 1) / (fitted.max() - 1)
        fitted[~above] = 1 - (1 - fitted[~above]) * (1 - MIN_TO_MEAN) / (1 - fitted.min())
        fitted /= fitted.mean()
    return fitted
