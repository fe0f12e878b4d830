"""A generator's arrivals piece by piece, for traces that do not fit in memory.

Pieces of stationary traffic (poisson, gamma, bursty) are drawn with seeds of their own: renewals
start in equilibrium at each piece, every `PIECE_S` seconds, so the rate is the same throughout. The
squeezed Azure shape has a rate per minute of the original, and its pieces are Poisson at those
rates, as in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from traces.generators.arrivals import poisson
from traces.generators.azure_shape import minute_shape
from traces.spec.spec import parse_spec
from traces.trace import FloatArray, TraceError

PIECE_S = 10.0
_STATIONARY = ("poisson", "gamma", "bursty")
_SHAPE = "azure2019-shape"
_DURATION = re.compile(r"(?<=[:,]duration=)[^,]+")
_RATE = re.compile(r"(?<=[:,]qps=)[^,]+")


class Stream(NamedTuple):
    """Arrivals in pieces, in order, and how long they last."""

    pieces: Iterator[FloatArray]
    duration_s: float


def stream_spec(spec: str, *, seed: int = 0) -> Stream:
    """Return the arrivals of a generator's SPEC in pieces; the same seed gives the same ones.

    Raises TraceError for a SPEC that is malformed, a file, or a generator that has no stream.
    """
    name = spec.partition(":")[0]
    if name not in (*_STATIONARY, _SHAPE):
        allowed = ", ".join((*_STATIONARY, _SHAPE))
        raise TraceError(f"{name!r} cannot be streamed, allowed are the generators {allowed}")
    parse_spec(_DURATION.sub("0.001", spec), seed=seed)  # reports what is malformed
    found = _DURATION.search(spec)
    duration_s = float(found.group()) if found else math.nan
    if not 0 < duration_s < math.inf:
        raise TraceError(f"duration must be a finite time above 0 in {spec!r}")
    if name == _SHAPE:
        rate = _RATE.search(spec)
        assert rate is not None, "the spec was parsed with its rate"
        return Stream(_shaped(float(rate.group()), duration_s, seed), duration_s)
    return Stream(_stationary(spec, duration_s, seed), duration_s)


def _stationary(spec: str, duration_s: float, seed: int) -> Iterator[FloatArray]:
    for k in range(math.ceil(duration_s / PIECE_S)):
        begin_s = k * PIECE_S
        length_s = min(PIECE_S, duration_s - begin_s)
        piece = parse_spec(_DURATION.sub(f"{length_s!r}", spec), seed=_seed(seed, k))
        yield begin_s + piece.arrival_s


def _shaped(rate_qps: float, duration_s: float, seed: int) -> Iterator[FloatArray]:
    shape = minute_shape(seed)
    bin_s = duration_s / len(shape)
    parts = math.ceil(bin_s / PIECE_S)
    for k in range(len(shape) * parts):
        begin_s = k * bin_s / parts
        rate = rate_qps * float(shape[k // parts])
        yield begin_s + poisson(rate, bin_s / parts, seed=_seed(seed, k)).arrival_s


def _seed(seed: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, piece]).generate_state(1)[0])
