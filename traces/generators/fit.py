"""Fit a generator to a trace, and show how well: dispersion, tail and rate on a held-out part.

The check fits one part of the trace only, generates from that, and asks at every scale with at
least 100 windows in the held-out part whether the generator's index of dispersion lies inside the
95 % block-bootstrap interval of the held-out one. `fit` itself takes the whole trace.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np

from traces.burstiness import counts_per_window, gap_cv2, scales_s
from traces.generators.cascade import MIN_PAIRS, Cascade, Division, division_of, grid_s, top_of
from traces.memory import check_memory
from traces.trace import FloatArray, IntArray, Trace, TraceError

FINEST_S = 0.001
MIN_COARSE_WINDOWS = 50
MIN_CHECKED_WINDOWS = 100
MIN_ARRIVALS = 200
_RESAMPLES = 1000
_GENERATED = 400_000  # arrivals to compare with, in so many generated traces
_MAX_BLOCKS = 50
_TAIL = (0.5, 0.99, 0.999)


def fit(trace: Trace) -> Cascade:
    """Return a generator with the trace's rate, and its dispersion from 1 ms up.

    Raises:
        TraceError: fewer than 200 arrivals.
    """
    if len(trace) < MIN_ARRIVALS:
        raise TraceError(
            f"the trace has {len(trace)} arrivals; fitting its burstiness needs {MIN_ARRIVALS}"
        )
    finest_s = min(FINEST_S, trace.duration_s / (20 * MIN_COARSE_WINDOWS))
    widths = grid_s(trace.duration_s, finest_s, MIN_COARSE_WINDOWS)
    divisions: list[Division] = []
    wanted: list[float] = []
    num_windows = trace.duration_s / finest_s
    check_memory(16 * num_windows, f"{num_windows:,.0f} windows", "fit a shorter part of the trace")
    children = counts_per_window(trace, finest_s)
    for (part_s, _), (_, parts) in pairwise(widths):
        whole = children[: children.size // parts * parts]
        parents = whole.reshape(-1, parts).sum(axis=1)
        pairs = np.dot(parents, parents - 1)
        if pairs >= MIN_PAIRS:
            divisions.append(division_of(parents, whole, part_s))
            wanted.append(float(np.dot(whole, whole - 1) / pairs))
        else:  # too few to see; what is finer is spread by chance
            divisions.clear()
            wanted.clear()
        children = parents
    variance, correlation = top_of(children)
    raw = Cascade(
        rate_qps=trace.rate_qps,
        duration_s=trace.duration_s,
        top_s=widths[-1][0],
        top_variance=variance,
        top_correlation=correlation,
        divisions=tuple(reversed(divisions)),
        source=trace.source,
    )
    return raw.calibrated(wanted[::-1])


def check_fit(
    trace: Trace, *, holdout: float = 0.4, blocks: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Fit one part of `trace`, generate, and compare with the held-out part.

    Each of `blocks` equal blocks gives its last `holdout` to the held-out part: 1 holds out the end
    of the trace, more put a rate that drifts over hours into both parts. Figures of the generator
    are over 8 to 24 generated traces of the fitted part's length. A scale has `held_out`, its 95 %
    `interval`, `fitted` and `is_inside`; `tail` has quantiles of the counts per window.
    """
    if not 0 < holdout < 1:
        raise TraceError(f"holdout is a fraction between 0 and 1, got {holdout:g}")
    kept, held = _parted(trace, holdout, blocks)
    cascade = fit(reduce(Trace.splice, kept))
    samples = int(np.clip(_GENERATED / (cascade.rate_qps * cascade.duration_s), 8, 24))
    made = [cascade.generate(seed=seed + i) for i in range(samples)]
    rng = np.random.default_rng(seed)
    scales: list[dict[str, Any]] = []
    for window_s in scales_s(held[0].duration_s, 1):
        held_out = _counts(held, window_s)
        if held_out.size < MIN_CHECKED_WINDOWS:
            continue
        low, high = dispersion_interval(held_out, rng)
        generated = _dispersion(_counts(made, window_s))
        scales.append(
            {
                "window_s": window_s,
                "windows": int(held_out.size),
                "fitted_part": _dispersion(_counts(kept, window_s)),
                "held_out": _dispersion(held_out),
                "interval": [low, high],
                "fitted": generated,
                "is_inside": bool(low <= generated <= high),
            }
        )
    return {
        "holdout": holdout,
        "blocks": blocks,
        "rate_qps": {
            "fitted_part": _rate_qps(kept),
            "held_out": _rate_qps(held),
            "fitted": _rate_qps(made),
        },
        "gap_cv2": {"fitted_part": _mean_gap_cv2(kept), "fitted": _mean_gap_cv2(made)},
        "dispersion": scales,
        "tail": [_tail(held, made, row["window_s"]) for row in scales if row["windows"] >= 1000],
    }


def _parted(trace: Trace, holdout: float, blocks: int) -> tuple[list[Trace], list[Trace]]:
    """Return the fitted and the held-out windows of the trace."""
    if blocks < 1:
        raise TraceError(f"blocks must be at least 1, got {blocks}")
    edges_s = np.linspace(0.0, trace.duration_s, blocks + 1).tolist()
    kept: list[Trace] = []
    held: list[Trace] = []
    for start_s, end_s in pairwise(edges_s):
        cut_s = end_s - holdout * (end_s - start_s)
        kept.append(trace.window(start_s, cut_s))
        held.append(trace.window(cut_s, end_s))
    return kept, held


def dispersion_interval(
    counts: IntArray, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Return a block-bootstrap interval of the index of dispersion of consecutive counts.

    Circular blocks keep the correlation between neighbours: sqrt(n) windows, and at fine scales a
    fiftieth of the time, since a rate that changes slowly ties together windows far apart.
    """
    length = max(int(counts.size**0.5), counts.size // _MAX_BLOCKS, 1)
    values = np.concatenate([counts, counts[: length - 1]]).astype(np.float64)
    sums = _block_sums(values, length)
    squares = _block_sums(values**2, length)
    num_blocks = -(-counts.size // length)
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        picks = rng.integers(0, sums.size, num_blocks)
        mean = sums[picks].sum() / (num_blocks * length)
        second = squares[picks].sum() / (num_blocks * length)
        found[i] = (second - mean**2) / mean if mean else 0.0
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _block_sums(values: FloatArray, length: int) -> FloatArray:
    reached = np.concatenate([[0.0], np.cumsum(values)])
    return reached[length:] - reached[:-length]


def _dispersion(counts: IntArray) -> float:
    return float(counts.var() / counts.mean()) if counts.any() else 0.0


def _counts(traces: list[Trace], window_s: float) -> IntArray:
    return np.concatenate([counts_per_window(t, window_s) for t in traces])


def _rate_qps(traces: list[Trace]) -> float:
    return sum(len(t) for t in traces) / sum(t.duration_s for t in traces)


def _mean_gap_cv2(traces: list[Trace]) -> float | None:
    found = [v for v in (gap_cv2(t.arrival_s) for t in traces) if v is not None]
    return float(np.mean(found)) if found else None


def _tail(held: list[Trace], made: list[Trace], window_s: float) -> dict[str, Any]:
    return {
        "window_s": window_s,
        "quantiles": list(_TAIL),
        "held_out": np.quantile(_counts(held, window_s), _TAIL).tolist(),
        "fitted": np.quantile(_counts(made, window_s), _TAIL).tolist(),
    }
