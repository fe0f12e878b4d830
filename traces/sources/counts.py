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

from traces.memory import check_arrivals
from traces.sources.columns import Table, read_table
from traces.sources.units import UNITS
from traces.trace import MAX_DURATION_S, FloatArray, Trace, TraceError

_ABOUT_A_BIN = 0.9  # the median distance of rows, in bins, from which there is one row a bin
_EDGE = 1e-6  # of a bin: what rounding may put just before an edge is on it
_MAX_BINS = 10_000_000
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
            duration or placement; `cv2` missing for gamma, or given without it; more arrivals
            than memory.
    """
    shares = _checked_weights(weights)
    for name, value in (("qps", rate_qps), ("duration", duration_s)):
        if not (np.isfinite(value) and value > 0):
            raise TraceError(f"{name} must be a finite number above 0, got {value:g}")
    _check_placement(placement, cv2)
    check_arrivals(
        rate_qps * duration_s,
        "squeeze them (qps=RATE,duration=SECONDS), or take a part of the log (start=,length=)",
    )
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
    time: str | None = None,
    unit: str = "s",
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    duration_s: float | None = None,
    placement: str = "uniform",
    cv2: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the counts per second, minute or other bin of any log as arrivals.

    Without `time` each row is the next bin. With it the column says when each row's bin starts (in
    `unit`): rows may come in any order, several rows of a bin are added up (one per series), and
    bins without a row count nothing. Counts may be fractions, such as means: sums are rounded, not
    single bins. `start_s` and `length_s` cut whole bins out of the log's own time. Without
    `rate_qps` and `duration_s` the rate and length are the log's own.

    Raises:
        TraceError: names the file and line, or what does not fit, or more arrivals than memory.
    """
    if not (np.isfinite(bin_s) and bin_s > 0):
        raise TraceError(f"bin must be a finite number above 0, got {bin_s:g}")
    kinds = {column: "number"}
    kinds |= {} if time is None else {time: "time" if unit == "iso" else "number"}
    if time == column:
        raise TraceError(f"time and column both name {column!r}; a column is one of them")
    table = read_table(path, kinds)
    rows = table.numbers[column]
    table.refuse(path, rows < 0, column, "a count of at least 0")
    counts = rows
    if time is not None:
        counts = _binned(path, table, time, table.seconds(time, UNITS[unit]), rows, bin_s)
    counts = _cut_bins(path, counts, bin_s, start_s, length_s)
    if not counts.any():
        raise TraceError(f"{path}, column {column}: all counts are 0, so there are no arrivals")
    duration_s = bin_s * counts.size if duration_s is None else duration_s
    rate_qps = float(counts.sum()) / duration_s if rate_qps is None else rate_qps
    try:
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
                "synthetic_part": f"the arrival times inside each bin of {bin_s:g} s, and the "
                "scale",
                "loader": "counts",
                "invocations": float(counts.sum()),
                "start_s": start_s,
            },
        )
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _binned(
    path: Path | str, table: Table, time: str, times_s: FloatArray, rows: FloatArray, bin_s: float
) -> FloatArray:
    """Return the sum of the rows in each bin from the first time on."""
    since = (times_s - times_s.min()) / bin_s
    moments = np.unique(since)
    # One row a bin, give or take a late scrape, goes to the nearest; finer rows into their bin.
    is_per_bin = moments.size < 2 or float(np.median(np.diff(moments))) > _ABOUT_A_BIN
    places = np.rint(since) if is_per_bin else np.floor(since + _EDGE)
    last = float(places.max())
    if last * bin_s > MAX_DURATION_S or last > _MAX_BINS:
        row = int(np.argmax(places))
        raise TraceError(
            f"{path}, {table.places.of(row)}, column {time}: lies {last:,.0f} bins of {bin_s:g} s "
            f"after the first, expected at most ten years and {_MAX_BINS:,} bins: correct the row, "
            "or say another unit= or bin="
        )
    return np.bincount(places.astype(np.int64), weights=rows).astype(np.float64)


def _cut_bins(
    path: Path | str, counts: FloatArray, bin_s: float, start_s: float, length_s: float | None
) -> FloatArray:
    first = round(start_s / bin_s)
    last = counts.size if length_s is None else first + round(length_s / bin_s)
    if not first < min(last, counts.size):
        raise TraceError(
            f"{path}: no whole bin of {bin_s:g} s lies in start={start_s:g}, length="
            f"{'the rest' if length_s is None else f'{length_s:g}'}; it spans "
            f"{counts.size * bin_s:g} s"
        )
    return counts[first:last]


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
