"""A generator's arrivals piece by piece, for traces that do not fit in memory.

Pieces of stationary traffic (poisson, gamma, bursty) are drawn with seeds of their own: renewals
start in equilibrium at each piece, every `PIECE_S` seconds, so the rate is the same throughout. The
squeezed Azure shape has a rate per minute of the original, and its pieces are Poisson at those
rates, as in memory. The rate of `diurnal` is that of the middle of each piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from traces.generators.arrivals import gamma, poisson
from traces.generators.azure_shape import minute_shape
from traces.spec.spec import GENERATORS, SpecPart, part_seed, spec_parts
from traces.trace import FloatArray, TraceError

PIECE_S = 10.0
_STATIONARY = ("poisson", "gamma", "bursty")
_SHAPE = "azure2019-shape"
_DIURNAL = "diurnal"
_NAMES = (*_STATIONARY, _SHAPE, _DIURNAL)
_RATES = ("rate_qps", "base_qps", "variant_qps")


class Stream(NamedTuple):
    """Arrivals in pieces, in order, and how long they last."""

    pieces: Iterator[FloatArray]
    duration_s: float


@dataclass(frozen=True, slots=True, eq=False)
class PieceSource:
    """The arrivals of a generator's SPEC, any piece of them at any time, always the same.

    There are `parts` pieces to each `bin_s` seconds. `rates_qps` is the rate of each piece where it
    changes, with gaps of `cv2`; None: `stationary`, of which the sum is drawn, says it.
    """

    spec: str
    seed: int
    duration_s: float
    bin_s: float
    parts: int = 1
    rates_qps: FloatArray | None = None
    cv2: float = 1.0
    stationary: Sequence[SpecPart] = ()

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
            return begin_s + _together(self.stationary, length_s, seed)
        if self.cv2 == 1.0:
            piece = poisson(float(self.rates_qps[number]), length_s, seed=seed)
        else:
            piece = gamma(float(self.rates_qps[number]), self.cv2, length_s, seed=seed)
        return begin_s + piece.arrival_s

    @property
    def expected_qps(self) -> float:
        """The mean rate, as the SPEC says it; what arrives varies about that."""
        if self.rates_qps is not None:
            return float(np.mean(self.rates_qps))
        return sum(part.arguments.get(key, 0.0) for part in self.stationary for key in _RATES)

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
    """Return the pieces of a generator's SPEC, or of a sum of stationary ones of one duration.

    Raises TraceError for a SPEC that is malformed, a file, or a generator that has no stream.
    """
    parts = spec_parts(spec)
    for name, arguments in parts:
        if name not in _NAMES:
            raise TraceError(
                f"{name!r} cannot be streamed, allowed are the generators {', '.join(_NAMES)}"
            )
        GENERATORS[name].build(**{**arguments, "duration_s": 0.001}, seed=seed)  # or it says why
    name, arguments = parts[0]
    duration_s = arguments["duration_s"]
    if not duration_s > 0:
        raise TraceError(f"duration must be a finite time above 0 in {spec!r}")
    if len(parts) > 1:
        _check_sum(parts)
    if name == _SHAPE:
        _check_placed(arguments)
        shape = minute_shape(seed)
        bin_s = duration_s / len(shape)
        per_bin = math.ceil(bin_s / PIECE_S)
        rates_qps = arguments["rate_qps"] * np.repeat(shape, per_bin)
        return PieceSource(spec, seed, duration_s, bin_s, per_bin, rates_qps)
    if name == _DIURNAL:
        cv2 = arguments.get("cv2", 1.0)
        return PieceSource(
            spec, seed, duration_s, PIECE_S, 1, _day_rates_qps(**{**arguments, "cv2": cv2}), cv2
        )
    return PieceSource(spec, seed, duration_s, PIECE_S, stationary=tuple(parts))


def _day_rates_qps(
    rate_qps: float,
    peak_to_mean: float,
    duration_s: float,
    cv2: float,
    period_s: float | None = None,
) -> FloatArray:
    """Return the rate in the middle of each piece of a day."""
    middles_s = np.minimum(np.arange(0, duration_s, PIECE_S) + PIECE_S / 2, duration_s)
    swing = (peak_to_mean - 1) * np.cos(2 * math.pi * middles_s / (period_s or duration_s))
    return rate_qps * (1 - swing)


def _together(parts: Sequence[SpecPart], length_s: float, seed: int) -> FloatArray:
    """Return the arrivals of stationary parts superposed, as `parse_spec` draws them."""
    drawn = [
        GENERATORS[name]
        .build(**{**arguments, "duration_s": length_s}, seed=part_seed(seed, place))
        .arrival_s
        for place, (name, arguments) in enumerate(parts)
    ]
    return drawn[0] if len(drawn) == 1 else np.sort(np.concatenate(drawn))


def _check_sum(parts: Sequence[SpecPart]) -> None:
    """Refuse a sum whose pieces are no sum of pieces. Raises TraceError."""
    if {part.name for part in parts} - {*_STATIONARY}:
        raise TraceError(f"of a sum only {', '.join(_STATIONARY)} can be streamed")
    if len({part.arguments["duration_s"] for part in parts}) > 1:
        raise TraceError("the parts of a sum that is streamed must have one duration")


def _check_placed(arguments: Mapping[str, Any]) -> None:
    """Refuse arrivals that are not placed as pieces are. Raises TraceError."""
    placed = arguments.get("placement", "poisson")
    if placed != "poisson" or "cv2" in arguments:
        raise TraceError(
            f"{_SHAPE} is streamed with placement=poisson and without cv2, got {placed}; leave "
            "both out, or simulate it without --stream"
        )


def _seed(seed: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, piece]).generate_state(1)[0])
