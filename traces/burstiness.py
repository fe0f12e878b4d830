"""How bursty a trace is: rate, peaks, gap variability, dispersion of counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.trace import FloatArray, Trace

WINDOWS_S = (0.01, 0.1, 1.0, 10.0)
MIN_WINDOWS = 20
"""Fewer windows than this say nothing about a variance."""


def describe(trace: Trace) -> dict[str, Any]:
    """Return what `trace info` prints, as plain data.

    `peak_to_mean` is of the counts in one-second windows. `index_of_dispersion` maps a window
    (seconds) to variance/mean of the counts in it: 1 for Poisson, more for bursts; windows that
    fit fewer than 20 times are left out. `gap_cv2` is the squared coefficient of variation of the
    gaps (None with fewer than two gaps).
    """
    return {
        "num_queries": len(trace),
        "duration_s": trace.duration_s,
        "rate_qps": trace.rate_qps,
        "peak_qps": _peak_qps(trace),
        "peak_to_mean": _peak_qps(trace) / trace.rate_qps if len(trace) else None,
        "gap_cv2": _gap_cv2(trace.arrival_s),
        "index_of_dispersion": {
            f"{window_s:g}": _dispersion(trace, window_s)
            for window_s in WINDOWS_S
            if trace.duration_s >= MIN_WINDOWS * window_s
        },
        "has_deadlines": trace.slo_s is not None,
        "has_classes": trace.query_class is not None,
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


def counts_per_window(trace: Trace, window_s: float) -> np.ndarray:
    """Return the arrivals in each whole window of `window_s` seconds (at least one window)."""
    windows = max(int(trace.duration_s / window_s + 1e-9), 1)
    edges = np.arange(windows + 1) * window_s
    return np.diff(np.searchsorted(trace.arrival_s, edges))


def _peak_qps(trace: Trace) -> float:
    window_s = min(1.0, trace.duration_s)
    return float(counts_per_window(trace, window_s).max()) / window_s


def _gap_cv2(arrival_s: FloatArray) -> float | None:
    gaps = np.diff(arrival_s)
    if gaps.size < 2 or not gaps.any():
        return None
    return float(gaps.var() / gaps.mean() ** 2)


def _dispersion(trace: Trace, window_s: float) -> float | None:
    counts = counts_per_window(trace, window_s)
    return float(counts.var() / counts.mean()) if counts.any() else None
