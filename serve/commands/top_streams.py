"""What `supernet top` shows of a decoder: figures of its streams out of two readings, and how."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from serve.commands.top_figures import STREAMS, Grown, Reading, ratio, serves_streams
from serve.commands.top_view import bars, dials, milliseconds, number, pair, percent

_NAME = STREAMS


class StreamFigures(NamedTuple):
    """One decoder over one time span; NaN where there was nothing to measure.

    `on_time`, `fluidity`, `weighted`, `kv` and `hits` are fractions, quantiles are seconds;
    `widths` count outputs, `reasons` streams that were not on time.
    """

    model: str
    span_s: float | None
    ended: float
    on_time: float
    fluidity: float
    weighted: float
    tokens_per_s: float | None
    running: float
    waiting: float
    kv: float
    hits: float
    replicas: float
    first_s: tuple[float, float]
    gap_s: tuple[float, float]
    iteration_s: tuple[float, float]
    decision_s: float
    widths: dict[str, float]
    reasons: dict[str, float]


def stream_figures(new: Reading, old: Reading, span_s: float | None) -> list[StreamFigures]:
    """Return the figures of every decoder between two readings `span_s` apart, by name."""
    return [
        _figures(model, Grown(new[model], old.get(model, {})), span_s)
        for model in sorted(new)
        if serves_streams(new[model])
    ]


def stream_panel(where: str, figures: StreamFigures) -> Panel:
    """Return the panel of one decoder."""
    span = "since its start" if figures.span_s is None else f"last {figures.span_s:.0f} s"
    rate = figures.tokens_per_s
    table = dials(
        {
            "on time": percent(figures.on_time),
            "fluidity": number(figures.fluidity, "{:.3f}"),
            "by quality": number(figures.weighted, "{:.3f}"),
            "streams": f"{figures.ended:.0f}",
            "tokens/s": "-" if rate is None else f"{rate:.1f}",
            "running": f"{figures.running:.0f} on {figures.replicas:.0f}",
            "waiting": f"{figures.waiting:.0f}",
            "memory held": percent(figures.kv),
            "first token p50, p95": pair(figures.first_s),
            "gap p50, p99": pair(figures.gap_s),
            "iteration p50, p99": pair(figures.iteration_s),
            "decision p50": milliseconds(figures.decision_s),
            "prompt found": percent(figures.hits),
        }
    )
    parts: list[RenderableType] = [table, Text("")]
    parts.append(bars("width", figures.widths, "cyan", "tokens"))
    if figures.reasons:
        parts += [Text(""), bars("not on time", figures.reasons, "red", "streams")]
    is_well = not figures.on_time < 0.99  # NaN, nothing ended, is well
    return Panel(
        Group(*parts),
        title=Text.assemble((figures.model, "bold"), f" at {where}"),
        subtitle=span,
        border_style="green" if is_well else "red",
    )


def _figures(model: str, grown: Grown, span_s: float | None) -> StreamFigures:
    ended = {key[1:]: grown.value(*key) for key in grown.now if key[0] == f"{_NAME}ended_total"}
    count = sum(ended.values())
    on_time = sum(n for labels, n in ended.items() if labels[0] == "on_time")
    missed = {
        " ".join(labels).strip(): n
        for labels, n in ended.items()
        if labels[0] != "on_time" and n > 0
    }
    widths = grown.by_last_label(f"{_NAME}outputs_total")
    replicas = grown.now.get((f"{_NAME}ready",), 0.0)
    return StreamFigures(
        model=model,
        span_s=span_s,
        ended=count,
        on_time=ratio(on_time, count),
        fluidity=_mean(grown, "fluidity"),
        weighted=_mean(grown, "weighted_fluidity"),
        tokens_per_s=sum(widths.values()) / span_s if span_s else None,
        running=grown.now.get((f"{_NAME}running",), 0.0),
        waiting=grown.now.get((f"{_NAME}waiting",), 0.0),
        kv=grown.now.get((f"{_NAME}kv_share",), 0.0) / max(replicas, 1.0),
        hits=ratio(
            grown.value(f"{_NAME}prefix_hit_tokens_total"),
            grown.value(f"{_NAME}prefix_queried_tokens_total"),
        ),
        replicas=replicas,
        first_s=_quantiles(grown, "first_output_seconds", 0.5, 0.95),
        gap_s=_quantiles(grown, "gap_seconds", 0.5, 0.99),
        iteration_s=_quantiles(grown, "iteration_seconds", 0.5, 0.99),
        decision_s=grown.quantile(f"{_NAME}decision_seconds", 0.5),
        widths=widths,
        reasons=dict(sorted(missed.items(), key=lambda item: -item[1])),
    )


def _mean(grown: Grown, name: str) -> float:
    return ratio(grown.value(f"{_NAME}{name}_sum"), grown.value(f"{_NAME}{name}_count"))


def _quantiles(grown: Grown, name: str, first: float, second: float) -> tuple[float, float]:
    return grown.quantile(_NAME + name, first), grown.quantile(_NAME + name, second)
