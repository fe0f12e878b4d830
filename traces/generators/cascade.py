"""The fitted generator: a random cascade whose dispersion is given at every scale of a grid.

A multifractal model (Riedi, Crouse, Ribeiro and Baraniuk 1999, "A multifractal wavelet model") on
counts, on a grid of 1, 2, 10, 20, 100 ... ms:

1. Coarse counts are Poisson with a log-normal rate, correlated from bin to bin (AR(1)).
2. Each bin's count is divided among 5 or 2 equal parts, again and again down to milliseconds. A
   division is Dirichlet-multinomial; its one parameter is the chance that two arrivals of a bin
   fall into the same part, which is what the second factorial moments of the counts say, so that
   mean and variance of the counts come out right at each scale of the grid, however bursty. The
   parameter depends on the bin's count, so that a stream with a highest rate keeps it.
3. More even than chance: a share of the bins is divided as evenly as can be.
4. Inside the finest bins arrivals lie uniformly.

Products of random shares give the heavy upper tail that bursts have. Linear in the arrivals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.memory import check_arrivals
from traces.trace import FloatArray, IntArray, Trace, TraceError

FORMAT = 1
MIN_PAIRS = 100
"""Pairs of arrivals in a bin, fewer than which say nothing about how bins are divided."""
MAX_LAWS = 12
_CALIBRATED = 1_000_000  # arrivals that the laws are calibrated on, about
_EVEN = 1e9  # a Dirichlet parameter at which the parts' shares are equal
_UNBOUNDED = 1e300  # JSON has no infinity
_MAX_PARTS = 1000  # of a bin; a fit makes 2 and 5


class Law(NamedTuple):
    """How bins with a count up to `up_to` times the mean bin's are divided.

    `together` is the chance that two arrivals fall into the same part (1/parts: they do not know of
    each other); `even` is the share of bins that are divided evenly.
    """

    up_to: float
    together: float
    even: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a bin of `parts * part_s` seconds is divided, by its count: laws from low to high.

    Full bins of a stream that has a highest rate are homogeneous, half-full ones are not.
    """

    parts: int
    part_s: float
    laws: tuple[Law, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """A fitted generator: coarse bins of `top_s` seconds, and the divisions from there down.

    `top_variance` is of the counts in coarse bins, `top_correlation` of neighbouring bins' rates.
    """

    rate_qps: float
    duration_s: float
    top_s: float
    top_variance: float
    top_correlation: float
    divisions: tuple[Division, ...]
    source: str

    def generate(
        self, *, duration_s: float | None = None, rate_qps: float | None = None, seed: int = 0
    ) -> Trace:
        """Return arrivals for `duration_s` (None: as long as the fitted trace).

        Another `rate_qps` than the fitted one scales the rate and keeps the relative burstiness of
        the rate itself.
        """
        duration_s = self.duration_s if duration_s is None else duration_s
        rate = self.rate_qps if rate_qps is None else rate_qps
        for name, value in (("duration", duration_s), ("rate", rate)):
            if not (math.isfinite(value) and value > 0):
                raise TraceError(f"{name} must be a finite number above 0, got {value:g}")
        bins_needed = duration_s / self.top_s
        check_arrivals(max(rate * duration_s, bins_needed), "lower the rate or the duration")
        rng = np.random.default_rng(seed)
        # 1. coarse counts; empty bins stay empty and are left out
        counts = self._top_counts(math.ceil(duration_s / self.top_s), rate, rng)
        bins = np.flatnonzero(counts)
        counts = counts[bins]
        # 2. and 3. divide them, from the coarsest bins to the finest
        for division in self.divisions:
            mean = rate * division.part_s * division.parts
            bins, counts = _divided(bins, counts, division, mean, rng)
        # 4. places inside the finest bins
        part_s = self.divisions[-1].part_s if self.divisions else self.top_s
        times_s = np.sort((np.repeat(bins, counts) + rng.random(counts.sum())) * part_s)
        return Trace(
            arrival_s=times_s[times_s <= duration_s],
            duration_s=duration_s,
            source=f"generator fitted to {self.source}",
            metadata={
                "synthetic": True,
                "generator": "fitted",
                "fitted_to": self.source,
                "rate_qps": rate,
                "duration_s": duration_s,
                "seed": seed,
            },
        )

    def _top_counts(self, bins: int, rate_qps: float, rng: np.random.Generator) -> IntArray:
        fitted_mean = self.rate_qps * self.top_s
        mean = rate_qps * self.top_s
        noise = _ar1(bins, 0.0, rng)
        if self.top_variance < fitted_mean:  # more even than Poisson: carry the rounding over
            spread = math.sqrt(self.top_variance * mean / fitted_mean)
            reached = np.cumsum(np.maximum(mean + spread * noise, 0.0))
            return np.diff(np.rint(np.concatenate([[0.0], reached]))).astype(np.int64)
        # Var N = mean + mean^2 CV^2 for a Poisson count whose rate has that CV; log-normal: its
        # logarithm has variance log(1 + CV^2), and correlations transform likewise.
        cv2 = (self.top_variance - fitted_mean) / fitted_mean**2
        sigma2 = math.log1p(cv2)
        r = math.log1p(cv2 * self.top_correlation) / sigma2 if sigma2 else 0.0
        level = np.exp(math.sqrt(sigma2) * _ar1(bins, r, rng) - sigma2 / 2)
        return rng.poisson(mean * level)

    def calibrated(self, together: Sequence[float]) -> Cascade:
        """Return the cascade with laws scaled so that each division puts `together` pairs together.

        `together` has a value per division: of the pairs of arrivals in its bins, the fraction in
        the same part. Laws differ by count and generated counts are not quite the fitted ones, so
        the laws alone would miss that value by a little, and the misses add up over the scales.
        """
        rng = np.random.default_rng(0)
        coarse = max(_CALIBRATED / max(self.rate_qps * self.top_s, 1e-9), 2000)
        counts = self._top_counts(int(min(coarse, 200_000)), self.rate_qps, rng)
        bins = np.flatnonzero(counts)
        counts = counts[bins]
        scaled: list[Division] = []
        for division, wanted in zip(self.divisions, together, strict=True):
            mean = self.rate_qps * division.part_s * division.parts
            scaled.append(_scaled(division, counts, mean, wanted))
            bins, counts = _divided(bins, counts, scaled[-1], mean, rng)
        return replace(self, divisions=tuple(scaled))

    def to_json(self) -> str:
        """Return the generator as JSON, which `from_json` reads."""
        return json.dumps({"format": FORMAT, "generator": "cascade", **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str) -> Cascade:
        """Read what `to_json` wrote. Raises TraceError naming what is wrong."""
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            fields.pop("generator", None)
            divisions = tuple(
                Division(**{**d, "laws": tuple(Law(*law) for law in d["laws"])})
                for d in fields.pop("divisions")
            )
            made = Cascade(divisions=divisions, **fields)
            made._check()
            return made
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise TraceError(f"not a fitted generator ({error})") from None

    def _check(self) -> None:
        """Raise ValueError or TypeError for numbers that no fit gives."""
        above_0 = {"rate_qps": self.rate_qps, "duration_s": self.duration_s, "top_s": self.top_s}
        above_0 |= {"part_s": min((d.part_s for d in self.divisions), default=1.0)}
        for name, value in above_0.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, expected a finite number above 0")
        if not (math.isfinite(self.top_variance) and self.top_variance >= 0):
            raise ValueError(f"top_variance is {self.top_variance}, expected 0 or more")
        if not -1 < self.top_correlation < 1:
            raise ValueError(f"top_correlation is {self.top_correlation}, expected -1 to 1")
        for division in self.divisions:
            if not (isinstance(division.parts, int) and 2 <= division.parts <= _MAX_PARTS):
                raise ValueError(f"parts is {division.parts}, expected 2 to {_MAX_PARTS}")
            if not division.laws or not np.isfinite(np.array(division.laws, np.float64)).all():
                raise ValueError("laws: expected at least one, of finite numbers")


def fitted(
    path: Path | str,
    *,
    duration_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return arrivals of the generator that `trace fit --out` wrote to `path`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read ({error}); trace fit --out writes one") from None
    try:
        cascade = Cascade.from_json(text)
    except TraceError as error:
        raise TraceError(f"{path}: {error}; trace fit --out writes one") from None
    return cascade.generate(duration_s=duration_s, rate_qps=rate_qps, seed=seed)


def division_of(parents: IntArray, children: IntArray, part_s: float) -> Division:
    """Estimate a division from the counts of bins and of their parts, in order."""
    # Laws are fitted to groups of bins by count, each with the same mass of pairs: at least
    # MIN_PAIRS, since few pairs say nothing.
    parts = children.size // parents.size
    shares = children.reshape(-1, parts)
    order = np.argsort(parents, kind="stable")
    mass = np.cumsum(parents[order] * (parents[order] - 1))
    num_laws = int(np.clip(mass[-1] // MIN_PAIRS, 1, MAX_LAWS))
    at = np.searchsorted(mass, mass[-1] * np.arange(1, num_laws) / num_laws)
    bounds = np.unique(parents[order[at]]).tolist()
    bounds = [b for b in bounds if b < parents.max()] + [math.inf]
    laws: list[Law] = []
    below = -math.inf
    for bound in bounds:
        chosen = (parents > below) & (parents <= bound)
        laws.append(_law(bound / parents.mean(), parents[chosen], shares[chosen], parts))
        below = bound
    return Division(parts=parts, part_s=part_s, laws=tuple(laws))


def _law(up_to: float, parents: IntArray, shares: IntArray, parts: int) -> Law:
    up_to = min(up_to, _UNBOUNDED)
    pairs = float(np.dot(parents, parents - 1))
    if not pairs:
        return Law(up_to, 1 / parts, 0.0)
    same = float((shares * (shares - 1)).sum())
    by_chance = pairs / parts
    if same >= by_chance:  # burstier than chance: step 2, unbiased by the second factorial moments
        return Law(up_to, same / pairs, 0.0)
    # more even than chance: step 3, between chance and the most even division that there is
    whole, rest = np.divmod(parents, parts)
    most_even = float((rest * (whole + 1) * whole + (parts - rest) * whole * (whole - 1)).sum())
    return Law(up_to, 1 / parts, min((by_chance - same) / max(by_chance - most_even, 1e-9), 1.0))


def _scaled(division: Division, counts: IntArray, mean: float, wanted: float) -> Division:
    """Scale how far the laws are from chance, so that `wanted` of all pairs stay together."""
    parts = division.parts
    up_to, together, even = np.array(division.laws).T
    law = np.searchsorted(up_to[:-1] * mean * (1 + 1e-9), counts)
    pairs = counts * (counts - 1.0)
    whole, rest = np.divmod(counts, parts)
    most_even = rest * (whole + 1.0) * whole + (parts - rest) * whole * (whole - 1.0)
    over = float((pairs * (together[law] - 1 / parts)).sum())  # kept together beyond chance
    under = float(((pairs / parts - most_even) * even[law]).sum())
    gap = (wanted - 1 / parts) * float(pairs.sum())
    # wanted: over * factor - under = gap; where nothing is over chance, under is what gives way
    if over > 0 and gap + under > 0:
        together = 1 / parts + (together - 1 / parts) * ((gap + under) / over)
    elif under > 0:
        even = even * max((over - gap) / under, 0.0)
    together, even = np.clip(together, 1 / parts, 1 - 1e-6), np.clip(even, 0.0, 1.0)
    laws = zip(up_to.tolist(), together.tolist(), even.tolist(), strict=True)
    return replace(division, laws=tuple(Law(*values) for values in laws))


def _divided(
    bins: IntArray, counts: IntArray, division: Division, mean: float, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Return the parts that hold arrivals, and how many; in no particular order."""
    parts = division.parts
    up_to, together, even = np.array(division.laws).T
    law = np.searchsorted(up_to[:-1] * mean * (1 + 1e-9), counts)
    # For a symmetric Dirichlet over n parts with parameter alpha each, the chance that two fall
    # together is (1 + alpha) / (1 + n alpha); solved for alpha.
    chance_alone = np.maximum(parts * together - 1, 1 / _EVEN)
    alpha = np.maximum((1 - together) / chance_alone, 1e-6)[law]
    left, shares = counts.copy(), np.empty((parts, counts.size), dtype=np.int64)
    for k in range(parts - 1):  # a Dirichlet share is a beta of what the parts before left over
        shares[k] = rng.binomial(left, rng.beta(alpha, alpha * (parts - 1 - k)))
        left = left - shares[k]
    shares[-1] = left
    is_even = rng.random(counts.size) < even[law]
    if is_even.any():
        shares[:, is_even] = _evenly(counts[is_even], parts, rng)
    children = bins[None] * parts + np.arange(parts)[:, None]
    filled = shares > 0
    return children[filled], shares[filled]


def _evenly(counts: IntArray, parts: int, rng: np.random.Generator) -> IntArray:
    whole, rest = np.divmod(counts, parts)
    rank = rng.random((parts, counts.size)).argsort(axis=0).argsort(axis=0)
    return whole[None] + (rank < rest[None])


def _ar1(length: int, correlation: float, rng: np.random.Generator) -> FloatArray:
    """Return a standard normal series whose neighbours have this correlation."""
    steps = rng.standard_normal(length)
    if not correlation:
        return steps
    values = np.empty(length)
    scale, level = math.sqrt(1 - correlation**2), float(steps[0])
    for i in range(length):
        level = level if i == 0 else correlation * level + scale * float(steps[i])
        values[i] = level
    return values


def grid_s(duration_s: float, finest_s: float, min_windows: int) -> list[tuple[float, int]]:
    """Return (width in s, parts) of the bins from the finest up, as long as enough of them fit.

    >>> grid_s(0.5, 0.001, 20)
    [(0.001, 1), (0.002, 2), (0.01, 5), (0.02, 2)]
    """
    widths: list[tuple[float, int]] = [(finest_s, 1)]
    multiple, parts = 1, 2
    while duration_s >= min_windows * finest_s * multiple * parts:
        multiple *= parts
        widths.append((finest_s * multiple, parts))
        parts = 7 - parts
    return widths


def top_of(counts: IntArray) -> tuple[float, float]:
    """Return variance and neighbours' rate correlation of the coarse counts."""
    values = counts.astype(np.float64)
    off = values - values.mean()
    variance = float(np.dot(off, off)) / values.size
    of_rate = variance - values.mean()
    if values.size < 3 or of_rate <= 0:
        return variance, 0.0
    covariance = float(np.dot(off[:-1], off[1:])) / (values.size - 1)
    return variance, float(np.clip(covariance / of_rate, 0.0, 0.98))
