"""The picture of systems side by side under several loads: attainment against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slackfit.output_files import replacing
from traces.report.plots import MUTED, POLICY_COLOURS, POLICY_MARKERS, STYLE, pareto_front


class PlanePoint(NamedTuple):
    """One system under one load, fractions; `interval` is the attainment's."""

    accuracy: float
    attainment: float
    interval: tuple[float, float]


def save_planes(path: Path, panels: Mapping[str, Mapping[str, PlanePoint]]) -> None:
    """Draw a panel per title, in it a point per system; the dotted line is the Pareto front."""
    systems = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    with mpl.rc_context(STYLE), replacing(path) as out:
        figure = Figure(figsize=(3.9 * len(panels) + 1.6, 4.0), layout="constrained")
        figure.patch.set_facecolor("white")
        row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, panel) in zip(row, panels.items(), strict=True):
            for name, point in panel.items():
                _draw(axes, systems.index(name), name, point)
            _front(axes, list(panel.values()))
            axes.set_title(title, loc="left")
            axes.set_xlabel("accuracy of on-time answers (%)")
        row[0].set_ylabel("answered on time (%)")
        handles = {
            label: handle
            for axes in row
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
        figure.savefig(out, format="svg", metadata={"Date": None})


def _draw(axes: Axes, index: int, name: str, point: PlanePoint) -> None:
    colour = POLICY_COLOURS[index % len(POLICY_COLOURS)]
    marker = POLICY_MARKERS[index % len(POLICY_MARKERS)]
    low, high = point.interval
    x = point.accuracy * 100
    axes.vlines(x, low * 100, high * 100, color=colour, lw=1.4, alpha=0.6)
    axes.plot(x, point.attainment * 100, marker, color=colour, label=name, ms=8, clip_on=False)


def _front(axes: Axes, points: Sequence[PlanePoint]) -> None:
    front = pareto_front([(p.accuracy * 100, p.attainment * 100) for p in points])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=MUTED, lw=1, ls=":")
