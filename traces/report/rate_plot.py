"""A picture of a trace's rate over time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from slackfit.output_files import replacing
from traces.burstiness import counts_per_window
from traces.report.plots import INK, POLICY_COLOURS, STYLE
from traces.trace import Trace, TraceError


def save_trace_rate(path: Path, trace: Trace) -> None:
    """Write a picture of a trace's rate over time, in at most 300 windows.

    Raises:
        TraceError: the suffix is not .svg or .png.
    """
    if path.suffix not in (".svg", ".png"):
        raise TraceError(f"{path}: unknown kind of picture; known suffixes: .svg, .png")
    window_s = trace.duration_s / min(300, max(len(trace) // 5, 1))
    counts = counts_per_window(trace, window_s)
    edges = np.arange(len(counts) + 1) * window_s
    with mpl.rc_context({**STYLE, "figure.facecolor": "white"}), replacing(path) as out:
        figure = Figure(figsize=(8.0, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.stairs(counts / window_s, edges, fill=True, color=POLICY_COLOURS[0], alpha=0.35, lw=0)
        axes.stairs(counts / window_s, edges, color=POLICY_COLOURS[0], lw=1)
        axes.axhline(trace.rate_qps, color=INK, lw=1, ls="--")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"time (s), windows of {window_s:.3g} s; dashed: mean")
        axes.set_ylabel("queries/s")
        figure.savefig(out, format=path.suffix[1:], dpi=150)
