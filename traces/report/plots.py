"""The report's pictures, as SVG text without any reference to the outside.

Text stays text (`svg.fonttype: none`) so that it is sharp, selectable and takes the page's font.
Figures are small and the page lays them out, so that they stay readable on a telephone. Colours:
Okabe and Ito's palette for policies, viridis from the smallest subnet (dark) to the largest.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from traces.report.point_labels import INK, MUTED, label_points, literal
from traces.report.validity import valid_ones

Report = Mapping[str, Any]

POLICY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
POLICY_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", ":", "-.")
"""Of the first seven policies, the next seven, and so on, whose colours come again."""
NOT_SERVED = "#d9d9d9"
GRID = "#e3e7ec"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "traces",  # ids that repeat from run to run
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b6bec8",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_LEAST_BARS = 5  # one bar alone is not as wide as the picture
_NAMED_BARS = 5
_FONT = "font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


def subnet_colours(subnet_ids: Sequence[str]) -> dict[str, str]:
    """Return a colour per subnet, dark for the first (smallest) to light for the last."""
    steps = np.linspace(0.08, 0.93, max(len(subnet_ids), 2))
    shades = mpl.colormaps["viridis"](steps)
    return {
        subnet_id: str(to_hex(shade)) for subnet_id, shade in zip(subnet_ids, shades, strict=False)
    }


def policy_style(index: int) -> tuple[str, str]:
    """Return (colour, marker) of the policy with this number, of 49 no two the same."""
    return POLICY_COLOURS[index % 7], POLICY_MARKERS[(index + index // 7) % 7]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one beats in both, from the left to the right.

    >>> pareto_front([(1, 5), (2, 4), (1, 4), (3, 1)])
    [(1, 5), (2, 4), (3, 1)]
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def plane(
    reports: Sequence[Report],
    labels: Sequence[str],
    intervals: Sequence[tuple[float, float]] | None = None,
) -> str:
    """Attainment against accuracy: one point per run, upper right is better.

    `intervals` of the attainments are drawn as vertical lines; dotted: the Pareto front.
    """
    with _figure(5.2, 3.7, "Attainment against accuracy") as (axes, out):
        points = [(r["mean_serving_accuracy"] * 100, r["slo_attainment"] * 100) for r in reports]
        for i, (x, y) in enumerate(points):
            colour, marker = policy_style(i)
            axes.plot(x, y, marker, color=colour, markersize=10, clip_on=False, zorder=3)
            if intervals is not None:
                low, high = intervals[i]
                axes.vlines(x, low * 100, high * 100, color=colour, lw=1.6, alpha=0.6)
        believed = [points[i] for i in valid_ones(reports)]
        front = pareto_front(believed)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=MUTED, lw=1, ls=":", zorder=2)
        _pad_limits(axes, points, intervals)
        label_points(axes, points, labels)
        axes.set_xlabel("mean accuracy of on-time answers (%)")
        axes.set_ylabel("answered on time (%)")
    return out[0]


def latency_cdf(reports: Sequence[Report], labels: Sequence[str]) -> str:
    """Cumulative latency of executed queries, one line per policy, beside the SLO."""
    with _figure(5.2, 3.7, "Latency distribution against the SLO") as (axes, out):
        highest = 0.0
        for i, (report, label) in enumerate(zip(reports, labels, strict=True)):
            cdf = report["latency_cdf"]
            if cdf["ms"]:
                fractions = np.asarray(cdf["fraction"]) * 100
                axes.step(
                    *(cdf["ms"], fractions),
                    where="post",
                    color=policy_style(i)[0],
                    lw=1.8,
                    ls=LINE_STYLES[i // 7 % len(LINE_STYLES)],
                )
                axes.plot([], [], color=policy_style(i)[0], label=label)
                highest = max(highest, cdf["ms"][-1])
        for slo_ms in sorted({r["slo_ms"] for r in reports}):
            axes.axvline(slo_ms, color=INK, lw=1.2, ls="--")
            axes.annotate(
                f"SLO {slo_ms:g} ms",
                (slo_ms, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                color=INK,
            )
            if highest > 10 * slo_ms:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_ylim(0, 102)
        axes.set_xlabel("latency from the intended send (ms)")
        axes.set_ylabel("of executed queries (%)")
    return out[0]


def offered_rate(report: Report, colour: str, top_qps: float) -> str:
    """Offered rate over time, and below it the part that was answered on time."""
    series, bin_s = report["series"], report["series"]["bin_s"]
    arrived = np.asarray(series["arrived"]) / bin_s
    on_time = np.asarray(series["on_time"]) / bin_s
    with _time_axes(report, "Offered rate over time") as (axes, edges, out):
        axes.stairs(on_time, edges, fill=True, color=colour, alpha=0.35, lw=0)
        axes.stairs(arrived, edges, color=INK, lw=1.1)
        axes.set_ylim(0, top_qps * 1.05)
        axes.set_ylabel("queries/s")
    return out[0]


def subnets_chosen(report: Report, colours: Mapping[str, str]) -> str:
    """Share of the arrived queries that each subnet served, stacked; grey: not executed."""
    series = report["series"]
    arrived = np.asarray(series["arrived"], dtype=float)
    whole = np.where(arrived > 0, arrived, 1)
    with _time_axes(report, "Subnets chosen over time") as (axes, edges, out):
        below = np.zeros(len(arrived))
        for subnet_id in (s for s in colours if s in series["subnets"]):
            above = below + np.asarray(series["subnets"][subnet_id]) / whole * 100
            axes.stairs(above, edges, baseline=below, fill=True, color=colours[subnet_id], lw=0)
            below = above
        rest = np.where(arrived > 0, 100.0, 0.0)
        axes.stairs(rest, edges, baseline=below, fill=True, color=NOT_SERVED, lw=0)
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 50, 100])
        axes.set_ylabel("queries (%)")
    return out[0]


def served_accuracy(report: Report, colour: str, limits: tuple[float, float]) -> str:
    """Mean accuracy of the on-time answers over time."""
    with _time_axes(report, "Served accuracy over time") as (axes, edges, out):
        _percent_stairs(axes, report["series"]["accuracy"], edges, colour)
        axes.set_ylim(*limits)
        axes.set_ylabel("accuracy (%)")
    return out[0]


def queue_depth(report: Report, colour: str) -> str:
    """How many admitted queries wait, over time."""
    with _time_axes(report, "Queue depth over time") as (axes, edges, out):
        depth = report["series"].get("queue_max", report["series"]["queue_depth"])
        axes.stairs(depth, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(depth, edges, color=colour, lw=1.2)
        axes.set_ylim(0, max(*depth, 1) * 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel("waiting")
    return out[0]


def batch_sizes(report: Report, colour: str) -> str:
    """How many batches of each size ran."""
    sizes = {int(size): count for size, count in report["batch_sizes"].items()}
    with _figure(5.2, 1.75, "Batch sizes") as (axes, out):
        names = [str(size) for size in sorted(sizes)]
        axes.bar(names, [sizes[size] for size in sorted(sizes)], color=colour, alpha=0.7)
        axes.set_xlabel("queries in the batch")
        axes.set_ylabel("batches")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.grid(axis="x", visible=False)
    return out[0]


def subnet_queries(report: Report, colours: Mapping[str, str]) -> str:
    """How many queries each subnet served, from the least to the most accurate."""
    used = [s for s in colours if s in report["subnets"]]
    with _figure(5.2, 1.75, "Queries per subnet") as (axes, out):
        counts = [report["subnets"][s]["queries"] for s in used]
        axes.bar(range(len(used)), counts, color=[colours[s] for s in used], width=0.8)
        axes.set_xlim(-0.5, max(len(used), _LEAST_BARS) - 0.5)
        step = -(-len(used) // _NAMED_BARS)  # of many subnets every so manyth is named
        named = range(0, len(used), step)
        axes.set_xticks(list(named), [literal(_short(used[i])) for i in named], fontsize=8)
        axes.set_xlabel("subnets, from the least to the most accurate")
        axes.set_ylabel("queries")
        axes.grid(axis="x", visible=False)
    return out[0]


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:6]}\N{HORIZONTAL ELLIPSIS}{name[-6:]}"


def attainment(report: Report, colour: str) -> str:
    """Share of queries answered on time, over time."""
    with _time_axes(report, "Attainment over time") as (axes, edges, out):
        _percent_stairs(axes, report["series"]["attainment"], edges, colour, fill=True)
        axes.set_ylim(0, 103)
        axes.set_yticks([0, 50, 100])
        axes.set_ylabel("on time (%)")
    return out[0]


@contextmanager
def _figure(width_in: float, height_in: float, title: str) -> Iterator[tuple[Axes, list[str]]]:
    """Yield (axes, out); on leaving, `out` holds the SVG."""
    out: list[str] = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        axes = figure.add_subplot()
        yield axes, out
        out.append(svg_of(figure, title))


@contextmanager
def _time_axes(report: Report, title: str) -> Iterator[tuple[Axes, np.ndarray, list[str]]]:
    """Yield (axes, bin edges, out) of a wide, low figure over the run's time."""
    out: list[str] = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 1.75))
        # Fixed margins: the panels of a policy lie above each other with one common time axis.
        axes = figure.add_axes((0.135, 0.26, 0.835, 0.68))
        starts = np.asarray(report["series"]["t_s"])
        edges = np.append(starts, starts[0] + report["series"]["bin_s"] * len(starts))
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("time (s)", labelpad=1)
        yield axes, edges, out
        out.append(svg_of(figure, title))


def _percent_stairs(
    axes: Axes, values: Sequence[float | None], edges: np.ndarray, colour: str, fill: bool = False
) -> None:
    percent = np.array([np.nan if v is None else v * 100 for v in values])
    if fill:
        axes.stairs(np.nan_to_num(percent), edges, fill=True, color=colour, alpha=0.18, lw=0)
    axes.stairs(percent, edges, baseline=None, color=colour, lw=1.6)


def _pad_limits(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    intervals: Sequence[tuple[float, float]] | None,
) -> None:
    """Leave room around the points for labels, and for the whole of the intervals."""
    heights = [y for _, y in points] + [end * 100 for pair in intervals or () for end in pair]
    for values, set_limits, floor in (
        ([x for x, _ in points], axes.set_xlim, 1.0),
        (heights, axes.set_ylim, 2.0),
    ):
        span = max(max(values) - min(values), floor)
        set_limits(min(values) - 0.2 * span, max(values) + 0.2 * span)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if y <= 100 else ""))


def svg_of(figure: Figure, title: str) -> str:
    """Return the figure as an inline SVG element: no doctype, metadata, namespace or font file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", rf"font-size: \1; {_FONT}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def with_id_prefix(svg: str, prefix: str) -> str:
    """Return an SVG whose ids start with `prefix`: ids are per document, a page has many SVGs."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    return re.sub(r"url\(#", f"url(#{prefix}-", svg)
