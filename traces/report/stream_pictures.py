"""The report page's part on streams: a table, widths over time, one stream told, load curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slackfit.streams.fluidity import FluidityCount
from traces.report.panels import ms, percent, picture
from traces.report.plots import INK, MUTED, NOT_SERVED, STYLE, policy_style, svg_of
from traces.report.point_labels import literal

Report = Mapping[str, Any]


def stream_section(
    reports: Sequence[Report], labels: Sequence[str], colours: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what the template needs of streams, None where no report has them."""
    chosen = [(i, r, n) for i, (r, n) in enumerate(zip(reports, labels, strict=True)) if _has(r)]
    if not chosen:
        return None
    curves = [(i, r["load_curve"], name) for i, r, name in chosen if r.get("load_curve")]
    return {
        "rows": [_row(i, report, name) for i, report, name in chosen],
        "panels": [_panel(i, report, name, colours) for i, report, name in chosen],
        "load": picture(load_curves(curves), "load") if curves else None,
    }


def widths_over_time(report: Report, colours: Mapping[str, str]) -> str:
    """Outputs per second over time, stacked by the width that computed them."""
    series, counts = report["series"], report["streams"]["outputs_over_time"]
    starts = np.asarray(series["t_s"])
    edges = np.append(starts, starts[-1] + series["bin_s"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 1.9), layout="constrained")
        axes = figure.add_subplot()
        below = np.zeros(len(starts))
        for subnet_id in (s for s in colours if s in counts):
            above = below + np.asarray(counts[subnet_id]) / series["bin_s"]
            axes.stairs(above, edges, baseline=below, fill=True, color=colours[subnet_id], lw=0)
            below = above
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time (s)")
        axes.set_ylabel("outputs/s")
        return svg_of(figure, "Widths over time")


def timeline(told: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """One stream: outputs against their due times; tokens and budget; slack; widths as colours."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1, 1))
        _draw_outputs(top, told, colours)
        steps = told["steps"]
        at_s = np.asarray(steps["start_s"]) - told["arrival_s"]
        shade = [colours.get(name, NOT_SERVED) for name in steps["subnet_id"]]
        middle.bar(
            at_s, steps["tokens"], width=steps["expected_s"], align="edge", color=shade, lw=0
        )
        middle.step(at_s, steps["own_tokens"], where="post", color=INK, lw=1.0)
        middle.set_ylabel("tokens")
        slack_ms = [np.nan if s is None else s * 1e3 for s in steps["slack_s"]]
        bottom.step(at_s, slack_ms, where="post", color=MUTED, lw=1.2)
        bottom.step(at_s, np.asarray(steps["expected_s"]) * 1e3, where="post", color=INK, lw=0.8)
        bottom.set_yscale("symlog", linthresh=100)
        bottom.set_ylabel("ms")
        bottom.set_xlabel("time since the stream's arrival (s)")
        return svg_of(figure, "Timeline of a stream")


def load_curves(curves: Sequence[tuple[int, Sequence[Mapping[str, float]], str]]) -> str:
    """Mean fluidity (line) and on-time share (dotted) against the rate, one colour per policy."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for i, points, label in curves:
            colour, marker = policy_style(i)
            ordered = sorted(points, key=lambda point: point["rate_qps"])
            rates = [point["rate_qps"] for point in ordered]
            fluid = [point["fluidity"] * 100 for point in ordered]
            axes.plot(rates, fluid, color=colour, marker=marker, ms=4, lw=1.6, label=literal(label))
            on_time = [point["on_time"] * 100 for point in ordered]
            axes.plot(rates, on_time, color=colour, lw=1.2, ls=":")
        axes.set_xscale("log")
        axes.set_xlabel("streams per second")
        axes.set_ylabel("fluidity (%), dotted: on time")
        axes.legend(frameon=False, fontsize=9)
        return svg_of(figure, "Fluidity against load")


def _has(report: Report) -> bool:
    return report.get("kind") == "streams"


def _row(index: int, report: Report, label: str) -> dict[str, Any]:
    streams = report["streams"]
    return {
        "label": label,
        "colour": policy_style(index)[0],
        "fluidity": percent(streams["fluidity"]),
        "weighted": percent(streams["weighted_fluidity"]),
        "quality": percent(streams["mean_quality"]),
        "quality_kind": streams["quality_kind"],
        "rate": f"{streams['fluid_tokens_per_s']:.3g}",
        "ttft": f"{ms(streams['ttft_ms']['p50'])} / {ms(streams['ttft_ms']['p95'])}",
        "gap": f"{ms(streams['gap_ms']['p50'])} / {ms(streams['gap_ms']['p95'])} / "
        f"{ms(streams['gap_ms']['max'])}",
        "preemptions": streams["preemptions"],
        "relegated": streams["relegated"],
    }


def _panel(index: int, report: Report, label: str, colours: Mapping[str, str]) -> dict[str, Any]:
    figures = [
        {
            "caption": "Outputs per second, by the width that computed them (legend below).",
            "svg": picture(widths_over_time(report, colours), f"w{index}"),
        }
    ]
    told = report.get("timeline")
    if told:
        figures.append(
            {
                "caption": f"The least fluent stream ({percent(told['fluidity'])}): prompt of "
                f"{told['prompt_tokens']:,} tokens, {len(told['output_s'])} outputs. Top: outputs "
                "as they came, and when each was due (grey). Middle: tokens of each iteration in "
                "the colour of its width, the stream's own prompt tokens (line). Bottom: slack of "
                "the most urgent reader (grey) and what the iteration was predicted to take.",
                "svg": picture(timeline(told, colours), f"t{index}"),
            }
        )
    return {"label": label, "colour": policy_style(index)[0], "figures": figures}


def _draw_outputs(axes: Axes, told: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    begin_s = told["arrival_s"]
    count = FluidityCount(told["first_deadline_s"], told["period_s"])
    due_s: list[float] = []
    for output_s in told["output_s"]:
        due_s.append(count.due_s)
        count.note(output_s)
    numbers = range(1, len(due_s) + 1)
    axes.step([at - begin_s for at in due_s], numbers, where="post", color="#b6bec8", lw=1.6)
    shade = [colours.get(name, NOT_SERVED) for name in told["subnet_ids"]]
    axes.scatter([at - begin_s for at in told["output_s"]], numbers, c=shade, s=14, zorder=3)
    axes.set_ylabel("output")
