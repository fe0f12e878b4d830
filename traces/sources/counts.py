"""Arrivals out of counts per bin: the paper's squeeze, and where arrivals lie inside a bin.

SuperServe (NSDI'25, 6.2) squeezes 24 hours into 120 s "by shape-preserving transformations"; how
arrivals are placed inside a bin is not stated, so it is a choice here and recorded in the trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.sources.columns import read_table
from traces.trace import FloatArray, Trace, TraceError

PLACEMENTS = ("uniform", "poisson", "gamma")


def squeeze(
    weights: npt.ArrayLike,
    *,
    rate_qps: float,
    duration_s: float,
    placement: str = "uniform",
    cv2: float | None = None,
    seed: int = 0,
    source: str = "",
    licence: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Trace:
    """Turn counts per bin into arrivals: the same shape within `duration_s` at mean `rate_qps`.

    Bin k gets the share weights[k]/sum of rate x duration arrivals. With `uniform` placement the
    counts are those shares, rounded so that every prefix is within half an arrival; with `poisson`
    each count is drawn. Either way arrivals lie uniformly inside their bin. With `gamma` the gaps
    are gamma with squared coefficient of variation `cv2` in units of the local mean gap, scaled so
    that the total is exact.

    Raises:
        TraceError: weights that are not finite, non-negative and somewhere above 0; a bad rate,
            duration or placement; `cv2` missing for gamma, or given without it.
    """
    shares = _checked_weights(weights)
    for name, value in (("qps", rate_qps), ("duration", duration_s)):
        if not (np.isfinite(value) and value > 0):
            raise TraceError(f"{name} must be a finite number above 0, got {value:g}")
    _check_placement(placement, cv2)
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0.0], np.cumsum(shares)]) * (rate_qps * duration_s / shares.sum())
    if placement == "gamma":
        assert cv2 is not None, "checked above"
        arrival_s = _gamma_placed(edges, cv2, duration_s, rng)
    else:
        counts = np.diff(np.rint(edges)).astype(np.int64)
        if placement == "poisson":
            counts = rng.poisson(np.diff(edges))
        bins = np.repeat(np.arange(shares.size), counts)
        arrival_s = np.sort((bins + rng.random(bins.size)) * (duration_s / shares.size))
    made = {"rate_qps": rate_qps, "duration_s": duration_s, "num_bins": int(shares.size)}
    made |= {"placement": placement, **({} if cv2 is None else {"cv2": cv2}), "seed": seed}
    return Trace(
        arrival_s=np.minimum(arrival_s, duration_s),
        duration_s=duration_s,
        source=source,
        licence=licence,
        metadata={**(metadata or {}), **made},
    )


def counts_trace(
    path: Path | str,
    bin_s: float,
    *,
    column: str = "count",
    rate_qps: float | None = None,
    duration_s: float | None = None,
    placement: str = "uniform",
    cv2: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the counts per second, minute or other bin of any log, one row a bin, as arrivals.

    Without `rate_qps` and `duration_s` the rate and length are the log's own.

    Raises:
        TraceError: names the file and line, or what does not fit.
    """
    counts = read_table(path, {column: "number"}).numbers[column]
    wrong = np.flatnonzero((counts < 0) | (counts != np.rint(counts)))
    if wrong.size:
        row = int(wrong[0])
        raise TraceError(
            f"{path}, row {row + 1}, column {column}: {counts[row]:g} is not a count; expected a "
            "whole number of at least 0"
        )
    duration_s = bin_s * counts.size if duration_s is None else duration_s
    rate_qps = float(counts.sum()) / duration_s if rate_qps is None else rate_qps
    return squeeze(
        counts,
        rate_qps=rate_qps,
        duration_s=duration_s,
        placement=placement,
        cv2=cv2,
        seed=seed,
        source=Path(path).name,
        metadata={
            "synthetic": False,
            "synthetic_part": f"the arrival times inside each bin of {bin_s:g} s, and the scale",
            "loader": "counts",
            "invocations": int(counts.sum()),
        },
    )


def _gamma_placed(
    edges: FloatArray, cv2: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Return renewals in operational time, mapped back through the cumulative count `edges`."""
    total = round(float(edges[-1]))
    if cv2 == 0:
        unit = (np.arange(total) + 0.5) * (edges[-1] / max(total, 1))
    else:
        gaps = rng.gamma(1 / cv2, cv2, total + 1)
        unit = np.cumsum(gaps)[:-1] * (edges[-1] / gaps.sum())
    # A bin without weight has no operational time: nothing can fall into it.
    times_s = np.linspace(0.0, duration_s, edges.size)
    rises = np.concatenate([[True], np.diff(edges) > 0])
    starts = np.concatenate([np.diff(edges) > 0, [True]])
    keep = rises | starts
    return np.maximum.accumulate(np.interp(unit, edges[keep], times_s[keep]))


def _checked_weights(weights: npt.ArrayLike) -> FloatArray:
    shares = np.asarray(weights, dtype=np.float64)
    if shares.ndim != 1 or not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise TraceError("counts per bin must be finite, non-negative and not all 0")
    return shares


def _check_placement(placement: str, cv2: float | None) -> None:
    if placement not in PLACEMENTS:
        raise TraceError(f"placement must be {' or '.join(PLACEMENTS)}, got {placement!r}")
    if (placement == "gamma") != (cv2 is not None):
        raise TraceError("cv2 goes with placement=gamma: give both or neither")
    if cv2 is not None and not (np.isfinite(cv2) and cv2 >= 0):
        raise TraceError(f"cv2 must be a finite number of at least 0, got {cv2:g}")
