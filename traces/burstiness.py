"""How bursty a trace is: rate over time, peaks, gaps, dispersion of counts, autocorrelation.

Ten million arrivals take seconds and little memory: counts are taken in chunks, and gaps too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from traces.trace import FloatArray, IntArray, Trace

WINDOWS_S = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
MIN_WINDOWS = 20
"""Fewer windows than this say nothing about a variance."""
LAGS = (1, 2, 5, 10, 20, 50)
_SERIES_BINS = 120
_CHUNK = 1 << 19
_SPARSE = 8  # windows per arrival from which only those in which something arrives are counted
_MAX_SERIES = 10_000_000
_EDGE = 1e-9  # of a window: an arrival that rounding puts just before an edge is on it


class Moments(NamedTuple):
    """Mean and variance of the counts in windows, and how many windows there are."""

    mean: float
    variance: float
    num_windows: int

    @property
    def dispersion(self) -> float | None:
        """Variance over mean: 1 for Poisson, more for bursts (None without arrivals)."""
        return self.variance / self.mean if self.mean else None


def describe(trace: Trace) -> dict[str, Any]:
    """Return what `trace info` prints, as plain data.

    `peak_to_mean` is of the counts in one-second windows. `index_of_dispersion` maps a window
    (seconds, 1 ms to 1 h) to variance/mean of the counts in it; windows that fit fewer than 20
    times are left out. `gap_cv2` is the squared coefficient of variation of the gaps (None with
    fewer than two), `gap_autocorrelation` that of neighbouring gaps. `autocorrelation` maps a lag
    to the correlation of counts in windows of `window_s`; `rate_over_time` has at most 120 bins.
    """
    gaps = _gap_moments(trace.arrival_s)
    return {
        "num_queries": len(trace),
        "duration_s": trace.duration_s,
        "rate_qps": trace.rate_qps,
        "peak_qps": _peak_qps(trace),
        "peak_to_mean": _peak_qps(trace) / trace.rate_qps if len(trace) else None,
        "gap_cv": None if gaps is None else gaps[0] ** 0.5,
        "gap_cv2": None if gaps is None else gaps[0],
        "gap_autocorrelation": None if gaps is None else gaps[1],
        "index_of_dispersion": {
            f"{window_s:g}": count_moments(trace, window_s).dispersion
            for window_s in scales_s(trace.duration_s, MIN_WINDOWS)
        },
        "autocorrelation": _autocorrelation(trace),
        "rate_over_time": _rate_over_time(trace),
        "has_deadlines": trace.slo_s is not None,
        "has_classes": trace.query_class is not None,
        "columns": list(trace.columns()),
        **provenance(trace),
    }


def provenance(trace: Trace) -> dict[str, Any]:
    """Return where a trace comes from and what about it is synthetic."""
    return {
        "source": trace.source,
        "licence": trace.licence,
        "metadata": dict(trace.metadata),
    }


def trace_summary(trace: Trace) -> dict[str, Any]:
    """Return the short form that a report carries under `trace`."""
    return {
        "num_queries": len(trace),
        "duration_s": trace.duration_s,
        "rate_qps": trace.rate_qps,
        "peak_qps": _peak_qps(trace),
        **provenance(trace),
    }


def scales_s(duration_s: float, min_windows: int) -> list[float]:
    """Return the windows of `WINDOWS_S` that fit at least `min_windows` times."""
    return [w for w in WINDOWS_S if duration_s >= min_windows * w * (1 - _EDGE)]


def counts_per_window(trace: Trace, window_s: float) -> IntArray:
    """Return the arrivals in each whole window of `window_s` seconds (at least one window)."""
    windows = max(int(trace.duration_s / window_s + _EDGE), 1)
    edges_s = (np.arange(windows + 1) - _EDGE) * window_s
    if windows == 1:
        edges_s[1] = min(window_s, trace.duration_s) * (1 + _EDGE)
    return np.diff(np.searchsorted(trace.arrival_s, edges_s))


def count_moments(trace: Trace, window_s: float) -> Moments:
    """Return mean and variance of the counts in whole windows, taken in chunks of windows."""
    num_windows = max(int(trace.duration_s / window_s + _EDGE), 1)
    if num_windows > _SPARSE * (trace.arrival_s.size + 1):
        occupied = _occupied_counts(trace.arrival_s, window_s, num_windows)
        mean, squares = float(occupied.sum()) / num_windows, int(np.dot(occupied, occupied))
        return Moments(mean, max(squares / num_windows - mean**2, 0.0), num_windows)
    num_counted, total, squares = 0, 0, 0
    for counts in _count_chunks(trace.arrival_s, window_s, num_windows):
        num_counted += counts.size
        total += int(counts.sum())
        squares += int(np.dot(counts, counts))
    mean = total / num_counted
    return Moments(mean, max(squares / num_counted - mean**2, 0.0), num_counted)


def gap_cv2(arrival_s: FloatArray) -> float | None:
    """Return the squared coefficient of variation of the gaps; None with fewer than two."""
    moments = _gap_moments(arrival_s)
    return None if moments is None else moments[0]


def _count_chunks(arrival_s: FloatArray, window_s: float, num_windows: int) -> Iterator[IntArray]:
    """Yield the counts of consecutive windows, a chunk at a time."""
    per_window = max(arrival_s.size / num_windows, 1e-9)
    size = int(np.clip(_CHUNK / max(per_window, 1.0), 1, _CHUNK))
    for first in range(0, num_windows, size):
        last = min(first + size, num_windows)
        low, high = np.searchsorted(
            arrival_s, [(first - _EDGE) * window_s, (last - _EDGE) * window_s]
        )
        if (high - low) > 16 * (last - first):  # few windows with many arrivals each
            edges_s = (np.arange(first, last + 1) - _EDGE) * window_s
            yield np.diff(np.searchsorted(arrival_s[low:high], edges_s))
            continue
        places = arrival_s[low:high] / window_s
        places += _EDGE
        window = np.minimum(places.astype(np.int64) - first, last - first - 1)
        yield np.bincount(np.maximum(window, 0), minlength=last - first)


def _occupied_counts(arrival_s: FloatArray, window_s: float, num_windows: int) -> IntArray:
    """Return the counts of the whole windows in which something arrives: linear in the arrivals."""
    end = np.searchsorted(arrival_s, (num_windows - _EDGE) * window_s)
    window = np.minimum((arrival_s[:end] / window_s + _EDGE).astype(np.int64), num_windows - 1)
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    return np.diff(starts, append=window.size)


def _peak_qps(trace: Trace) -> float:
    """Return the most in any second; the last one may be cut off by the end, and counts too."""
    window_s = min(1.0, trace.duration_s)
    num_windows = math.floor(trace.duration_s / window_s + _EDGE) + 1  # the very end is inside
    return float(_occupied_counts(trace.arrival_s, window_s, num_windows).max(initial=0)) / window_s


def _gap_moments(arrival_s: FloatArray) -> tuple[float, float] | None:
    """Return squared CV and lag-1 autocorrelation of the gaps, or None for fewer than two."""
    num_gaps = arrival_s.size - 1
    if num_gaps < 2 or arrival_s[-1] == arrival_s[0]:
        return None
    mean = float(arrival_s[-1] - arrival_s[0]) / num_gaps
    squares = products = 0.0
    for first in range(0, num_gaps, _CHUNK):
        off = np.diff(arrival_s[first : first + _CHUNK + 2]) - mean
        squares += float(np.dot(off[:_CHUNK], off[:_CHUNK]))
        products += float(np.dot(off[:-1], off[1:]))
    variance = squares / num_gaps
    correlation = products / squares if variance > (1e-9 * mean) ** 2 else 0.0
    return variance / mean**2, correlation


def _autocorrelation(trace: Trace) -> dict[str, Any]:
    """Return the correlation of counts some windows apart; the windows are 1 s or a round part."""
    longest_s = max(1.0, trace.duration_s / _MAX_SERIES)
    fitting = [w for w in scales_s(trace.duration_s, 2 * LAGS[-1]) if w <= longest_s]
    if not fitting:
        return {"window_s": None, "lags": {}}
    counts = counts_per_window(trace, fitting[-1]).astype(np.float64)
    off = counts - counts.mean()
    variance = float(np.dot(off, off))
    lags = {str(k): float(np.dot(off[:-k], off[k:])) / variance for k in LAGS} if variance else {}
    return {"window_s": fitting[-1], "lags": lags}


def _rate_over_time(trace: Trace) -> dict[str, Any]:
    bin_s = trace.duration_s / _SERIES_BINS
    edges_s = np.linspace(0.0, trace.duration_s, _SERIES_BINS + 1)
    edges_s[-1] = np.inf
    counts = np.diff(np.searchsorted(trace.arrival_s, edges_s))
    return {"bin_s": bin_s, "qps": (counts / bin_s).tolist()}
