"""A generator's arrivals piece by piece, for traces that do not fit in memory.

Pieces of stationary traffic (poisson, gamma, bursty) are drawn with seeds of their own: renewals
start in equilibrium at each piece, every `PIECE_S` seconds, so the rate is the same throughout. The
squeezed Azure shape has a rate per minute of the original, and its pieces are Poisson at those
rates, as in memory. The rate of `diurnal` is that of the middle of each piece.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from traces.generators.arrivals import gamma, poisson
from traces.generators.azure_shape import minute_shape
from traces.spec.spec import parse_spec
from traces.trace import FloatArray, TraceError

PIECE_S = 10.0
_STATIONARY = ("poisson", "gamma", "bursty")
_SHAPE = "azure2019-shape"
_DIURNAL = "diurnal"
_NAMES = (*_STATIONARY, _SHAPE, _DIURNAL)
_DURATION = re.compile(r"(?<=[:,]duration=)[^,]+")


class Stream(NamedTuple):
    """Arrivals in pieces, in order, and how long they last."""

    pieces: Iterator[FloatArray]
    duration_s: float


@dataclass(frozen=True, slots=True, eq=False)
class PieceSource:
    """The arrivals of a generator's SPEC, any piece of them at any time, always the same.

    There are `parts` pieces to each `bin_s` seconds. `rates_qps` is the rate of each piece where it
    changes; None: the SPEC says it.
    """

    spec: str
    seed: int
    duration_s: float
    bin_s: float
    parts: int = 1
    rates_qps: FloatArray | None = None
    cv2: float = 1.0

    def __len__(self) -> int:
        return self.parts * math.ceil(self.duration_s / self.bin_s - 1e-9)

    def begin_s(self, number: int) -> float:
        """Return when a piece begins."""
        return number * self.bin_s / self.parts

    def piece(self, number: int) -> FloatArray:
        """Return the arrivals of a piece, sorted, in seconds from the trace's start."""
        begin_s = self.begin_s(number)
        seed = _seed(self.seed, number)
        length_s = min(self.bin_s / self.parts, self.duration_s - begin_s)
        if self.rates_qps is None:
            piece = parse_spec(_DURATION.sub(f"{length_s!r}", self.spec), seed=seed)
        elif self.cv2 == 1.0:
            piece = poisson(float(self.rates_qps[number]), length_s, seed=seed)
        else:
            piece = gamma(float(self.rates_qps[number]), self.cv2, length_s, seed=seed)
        return begin_s + piece.arrival_s

    def between(self, begin_s: float, end_s: float) -> range:
        """Return the pieces that begin in [begin_s, end_s)."""
        per_s = self.parts / self.bin_s
        first, last = (math.ceil(t * per_s - 1e-9) for t in (begin_s, end_s))
        return range(max(first, 0), min(last, len(self)))


def stream_spec(spec: str, *, seed: int = 0) -> Stream:
    """Return the arrivals of a generator's SPEC in pieces; the same seed gives the same ones.

    Raises what `piece_source` raises.
    """
    source = piece_source(spec, seed=seed)
    return Stream((source.piece(k) for k in range(len(source))), source.duration_s)


def piece_source(spec: str, *, seed: int = 0) -> PieceSource:
    """Return the pieces of a generator's SPEC.

    Raises TraceError for a SPEC that is malformed, a file, or a generator that has no stream.
    """
    name = spec.partition(":")[0]
    if name not in _NAMES:
        raise TraceError(
            f"{name!r} cannot be streamed, allowed are the generators {', '.join(_NAMES)}"
        )
    parse_spec(_DURATION.sub("0.001", spec), seed=seed)  # reports what is malformed
    duration_s = _number(spec, "duration", math.nan)
    if not 0 < duration_s < math.inf:
        raise TraceError(f"duration must be a finite time above 0 in {spec!r}")
    if name == _SHAPE:
        shape = minute_shape(seed)
        bin_s = duration_s / len(shape)
        parts = math.ceil(bin_s / PIECE_S)
        rates_qps = _number(spec, "qps") * np.repeat(shape, parts)
        return PieceSource(spec, seed, duration_s, bin_s, parts, rates_qps)
    if name == _DIURNAL:
        period_s = _number(spec, "period", duration_s)
        middles_s = np.minimum(np.arange(0, duration_s, PIECE_S) + PIECE_S / 2, duration_s)
        swing = (_number(spec, "peak") - 1) * np.cos(2 * math.pi * middles_s / period_s)
        rates_qps = _number(spec, "rate") * (1 - swing)
        cv2 = _number(spec, "cv2", 1.0)
        return PieceSource(spec, seed, duration_s, PIECE_S, 1, rates_qps, cv2)
    return PieceSource(spec, seed, duration_s, PIECE_S)


def _number(spec: str, key: str, default: float = 0.0) -> float:
    found = re.search(rf"(?<=[:,]){key}=([^,]+)", spec)
    return default if found is None else float(found[1])


def _seed(seed: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, piece]).generate_state(1)[0])
