"""Seeded generators of arrivals, among them the synthetic traffic of SuperServe (NSDI'25, 6.1).

`bursty` is the paper's base + variant traffic and `ramp` its time-varying traffic. The paper gives
the squared coefficient of variation CV^2 of the gamma gaps but not their scale; shape 1/CV^2 and
scale CV^2/rate follow from mean gap 1/rate. Every trace says in its metadata that it is synthetic,
from which generator, with which parameters and seed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from traces.memory import BYTES_PER_ARRIVAL, check_arrivals, check_memory
from traces.trace import FloatArray, Trace, TraceError

GENERATOR_VERSION = 2
"""Of what a seed gives. 2: renewals start in equilibrium; 1 began with a fresh gap at time 0."""
TOO_MANY = (
    "lower the rate or the duration, or simulate it as a stream (supernet simulate --stream), "
    "which keeps no arrivals"
)


def poisson(rate_qps: float, duration_s: float, *, seed: int = 0) -> Trace:
    """Return Poisson arrivals at a mean of `rate_qps` for `duration_s` seconds."""
    check_above_zero(rate=rate_qps, duration=duration_s)
    check_arrivals(rate_qps * duration_s, TOO_MANY)
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate_qps * duration_s)
    arrival_s = np.sort(rng.uniform(0.0, duration_s, count))
    return synthetic("poisson", arrival_s, duration_s, seed, rate_qps=rate_qps)


def gamma(rate_qps: float, cv2: float, duration_s: float, *, seed: int = 0) -> Trace:
    """Return a renewal stream with gamma gaps of mean 1/`rate_qps` and squared CV `cv2`.

    `cv2` 0 is evenly spaced from the start, 1 is Poisson. Others start in equilibrium, as if they
    had gone on for ever: the expected count of any stretch is rate x its length.
    """
    check_above_zero(rate=rate_qps, duration=duration_s)
    check_cv2(cv2)
    rng = np.random.default_rng(seed)
    arrival_s = renewals(rate_qps * duration_s, cv2, rng) / rate_qps
    return synthetic("gamma", arrival_s, duration_s, seed, rate_qps=rate_qps, cv2=cv2)


def bursty(
    base_qps: float, variant_qps: float, cv2: float, duration_s: float, *, seed: int = 0
) -> Trace:
    """Return an evenly spaced base stream plus a gamma renewal stream (SuperServe 6.1).

    `cv2` is the squared CV of the variant stream's gaps; the mean rate is the sum of both rates.
    """
    check_above_zero(base=base_qps, variant=variant_qps, duration=duration_s)
    check_cv2(cv2)
    rng = np.random.default_rng(seed)
    check_arrivals((base_qps + variant_qps) * duration_s, TOO_MANY)
    base_s = np.arange(math.floor(base_qps * duration_s)) / base_qps
    variant_s = renewals(variant_qps * duration_s, cv2, rng) / variant_qps
    arrival_s = np.sort(np.concatenate([base_s, variant_s]))
    return synthetic(
        "bursty", arrival_s, duration_s, seed, base_qps=base_qps, variant_qps=variant_qps, cv2=cv2
    )


def ramp(
    start_qps: float,
    end_qps: float,
    accel_qps2: float,
    cv2: float,
    duration_s: float,
    *,
    seed: int = 0,
) -> Trace:
    """Return arrivals whose mean rate goes from `start_qps` to `end_qps` and then stays there.

    The rate moves by `accel_qps2` queries/s per second from the first moment on (downwards when
    the end is lower). Gaps are gamma with squared CV `cv2` in operational time: unit-rate renewals
    are mapped through the inverse of the cumulative rate, so the mean count in any interval is the
    integral of the rate. A ramp that the duration cuts off is an error: it would not reach `end`.
    """
    check_above_zero(start=start_qps, end=end_qps, accel=accel_qps2, duration=duration_s)
    check_cv2(cv2)
    rise_s = abs(end_qps - start_qps) / accel_qps2
    if rise_s > duration_s:
        raise TraceError(
            f"going from {start_qps:g} to {end_qps:g} queries/s at {accel_qps2:g} queries/s^2 "
            f"takes {rise_s:g} s, longer than duration {duration_s:g} s; raise accel or duration"
        )
    slope = math.copysign(accel_qps2, end_qps - start_qps)
    risen = (start_qps + end_qps) / 2 * rise_s  # expected arrivals while the rate moves
    expected = risen + end_qps * (duration_s - rise_s)
    unit = renewals(expected, cv2, np.random.default_rng(seed))
    # Solve start*t + slope/2*t^2 = unit in the form that stays stable for a small slope.
    root = np.sqrt(np.maximum(start_qps**2 + 2 * slope * np.minimum(unit, risen), 0.0))
    moving_s = 2 * np.minimum(unit, risen) / (start_qps + root)
    arrival_s = np.where(unit < risen, moving_s, rise_s + (unit - risen) / end_qps)
    arrival_s = np.maximum.accumulate(arrival_s)  # the square root may round ties out of order
    return synthetic(
        "ramp",
        arrival_s,
        duration_s,
        seed,
        start_qps=start_qps,
        end_qps=end_qps,
        accel_qps2=accel_qps2,
        cv2=cv2,
    )


def renewals(end: float, cv2: float, rng: np.random.Generator) -> FloatArray:
    """Return the renewal times below `end` of a unit-rate stream with gamma gaps, in equilibrium.

    The gap that covers time 0 is drawn in proportion to its length, which is gamma with one more in
    its shape, and 0 lies uniformly inside it (Cox 1962, "Renewal Theory"): the expected count up
    to any time is that time. With `cv2` 0 the renewals are 0, 1, 2 ...

    Raises:
        TraceError: so many, or such bursts, would not fit into memory.
    """
    check_arrivals(end, TOO_MANY)
    if cv2 == 0:
        return np.arange(math.floor(end), dtype=np.float64)
    reached = rng.random() * float(rng.gamma(1 / cv2 + 1, cv2))
    parts: list[FloatArray] = [np.array([reached])]
    num_drawn = 0.0
    while reached < end:
        missing = end - reached
        wanted = missing + 4 * math.sqrt(missing * cv2)
        num_drawn += wanted
        check_memory(
            num_drawn * BYTES_PER_ARRIVAL,
            f"bursts as large as gaps of cv2={cv2:g} make",
            "lower it",
        )
        size = int(wanted) + 16
        parts.append(reached + np.cumsum(rng.gamma(1 / cv2, cv2, size)))
        reached = float(parts[-1][-1])
    times = np.concatenate(parts)
    return times[times < end]


def synthetic(
    generator: str, arrival_s: FloatArray, duration_s: float, seed: int, **parameters: float
) -> Trace:
    """Return a generator's trace; the metadata carries its parameters and seed."""
    metadata: dict[str, Any] = {
        "synthetic": True,
        "generator": generator,
        "generator_version": GENERATOR_VERSION,
        **parameters,
        "duration_s": duration_s,
        "seed": seed,
    }
    return Trace(
        arrival_s=np.minimum(arrival_s, duration_s),
        duration_s=duration_s,
        source=f"generator {generator}",
        metadata=metadata,
    )


def check_above_zero(**values: float) -> None:
    """Refuse a named value that is not a finite number above 0. Raises TraceError."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise TraceError(f"{name} must be a finite number above 0, got {value:g}")


def check_cv2(cv2: float) -> None:
    """Refuse a squared coefficient of variation below 0 or not finite. Raises TraceError."""
    if not (math.isfinite(cv2) and cv2 >= 0):
        raise TraceError(f"cv2 must be a finite number of at least 0, got {cv2:g}")
