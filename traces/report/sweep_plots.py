"""The pictures of a sweep: the plane of attainment against accuracy, and a heat map of utility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from slackfit.output_files import replacing
from traces.report.plots import INK, POLICY_COLOURS, POLICY_MARKERS

Row = Mapping[str, Any]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sweep",  # ids that repeat from run to run
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "font.size": 10,
}


def save_plane(path: Path, rows: Sequence[Row]) -> None:
    """Draw attainment against accuracy: a line per policy through the loads, one panel per CV^2."""
    bursts = sorted({row["cv2"] for row in rows})
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    with mpl.rc_context(_STYLE), replacing(path) as out:
        figure = Figure(figsize=(4.6 * len(bursts), 4.0), layout="constrained")
        panels = figure.subplots(1, len(bursts), sharey=True, squeeze=False)[0]
        for axes, burst in zip(panels, bursts, strict=True):
            for i, policy in enumerate(policies):
                chosen = [r for r in rows if r["cv2"] == burst and r["policy"] == policy]
                chosen.sort(key=lambda r: r["rate_qps"])
                axes.plot(
                    [r["slo_attainment"] * 100 for r in chosen],
                    [r["mean_serving_accuracy"] * 100 for r in chosen],
                    marker=POLICY_MARKERS[i % len(POLICY_MARKERS)],
                    color=POLICY_COLOURS[i % len(POLICY_COLOURS)],
                    label=policy,
                    lw=1.2,
                )
            axes.set_title(f"CV² {burst:g}")
            axes.set_xlabel("on time (%)")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("accuracy of those on time (%)")
        panels[-1].legend(frameon=False)
        figure.savefig(out, format="svg", metadata={"Date": None})


def save_heat_map(path: Path, rows: Sequence[Row]) -> None:
    """Draw utility over load and CV^2, one panel per policy on one scale."""
    rates = sorted({row["rate_qps"] for row in rows})
    bursts = sorted({row["cv2"] for row in rows})
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    value = {(r["policy"], r["cv2"], r["rate_qps"]): r["utility"] * 100 for r in rows}
    with mpl.rc_context(_STYLE), replacing(path) as out:
        height = 1.2 + 0.35 * len(bursts)
        figure = Figure(figsize=(8.0, height * len(policies)), layout="constrained")
        panels = figure.subplots(len(policies), 1, squeeze=False)[:, 0]
        image = None
        for axes, policy in zip(panels, policies, strict=True):
            cells = np.array([[value[policy, b, q] for q in rates] for b in bursts])
            image = axes.imshow(cells, aspect="auto", vmin=0, vmax=max(value.values()))
            axes.set_title(policy, loc="left")
            axes.set_xticks(range(len(rates)), [f"{q:g}" for q in rates])
            axes.set_yticks(range(len(bursts)), [f"{b:g}" for b in bursts])
            axes.set_ylabel("CV²")
        panels[-1].set_xlabel("queries/s")
        assert image is not None, "a sweep has at least one policy"
        figure.colorbar(image, ax=list(panels), label="utility (%)")
        figure.savefig(out, format="svg", metadata={"Date": None})
