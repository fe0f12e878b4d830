"""How `supernet top` looks: one panel per model, or the word that the server is away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from serve.commands.top_figures import Figures, TenantFigures

_BAR_WIDTH = 30
_MAX_ROWS = 12
_NOTHING = "-"


def view(
    where: str,
    models: Sequence[Figures],
    refused: Mapping[tuple[str, str], float],
    more: Sequence[Panel] = (),
) -> RenderableType:
    """Return the frame for the figures of a server at `where`.

    `refused` by (tenant, reason); `more` are the panels of models of another kind.
    """
    if not models and not more:
        return Panel(Text(f"{where} serves no model yet"), title="supernet top")
    panels = [*(_panel(where, figures) for figures in models), *more]
    if refused:
        named = {
            f"{_tenant(tenant)}: {reason}": count for (tenant, reason), count in refused.items()
        }
        panels.append(Panel(bars("answered with an error", named, "red", "requests")))
    return Group(*panels)


def away(where: str, why: str) -> RenderableType:
    """Return the frame for a server that does not answer."""
    text = Text(f"{where} does not answer: {why}\nasking again; Ctrl-C ends")
    return Panel(text, title="supernet top", border_style="red")


def _panel(where: str, figures: Figures) -> Panel:
    span = "since its start" if figures.span_s is None else f"last {figures.span_s:.0f} s"
    parts: list[RenderableType] = [dials(_query_dials(figures)), Text("")]
    parts.append(bars("subnet", figures.subnets, "cyan"))
    if figures.reasons:
        parts += [Text(""), bars("not on time", figures.reasons, "red")]
    if any(figures.tenants):  # a server that is not shared has only the nameless one
        parts += [Text(""), _tenants(figures.tenants)]
    is_well = not figures.attainment < 0.99  # NaN, nothing ended, is well
    return Panel(
        Group(*parts),
        title=Text.assemble((figures.model, "bold"), f" at {where}"),
        subtitle=span,
        border_style="green" if is_well else "red",
    )


def _query_dials(figures: Figures) -> dict[str, str]:
    graphs = figures.graphs
    return {
        "attainment": percent(figures.attainment),
        "accuracy": percent(figures.accuracy),
        "queries": f"{figures.ended:.0f}",
        "queries/s": _NOTHING if figures.qps is None else f"{figures.qps:.1f}",
        "waiting": f"{figures.depth:.0f}",
        "running": f"{figures.running:.0f} on {figures.replicas:.0f}",
        "device busy": _NOTHING if figures.busy is None else percent(figures.busy),
        "batch": number(figures.batch_size, "{:.1f}"),
        "slack p1, p50": pair(figures.slack_s),
        "latency p50, p99": pair(figures.latency_s),
        "lateness p99": milliseconds(figures.lateness_s),
        "decision p50": number(figures.decision_s * 1e6, "{:.0f} us"),
        "found resident": percent(figures.resident),
        **({} if graphs is None else {"graphs": f"{graphs[0]:.0f}, {graphs[1]:.0f} missing"}),
    }


def dials(values: dict[str, str]) -> Table:
    """Return named figures, four in a row."""
    table = Table.grid(padding=(0, 2))
    cells = [Text.assemble((name, "dim"), " ", (value, "bold")) for name, value in values.items()]
    for start in range(0, len(cells), 4):
        table.add_row(*cells[start : start + 4])
    return table


def _tenants(tenants: Mapping[str, TenantFigures]) -> Table:
    """Return a row per tenant, those with the most queries first."""
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("tenant", style="bold")
    for name in ("queries", "attainment", "accuracy"):
        table.add_column(name, justify="right")
    rows = list(tenants.items())
    for name, found in rows[:_MAX_ROWS]:
        cells = (f"{found.ended:.0f}", percent(found.attainment), percent(found.accuracy))
        table.add_row(_tenant(name), *cells)
    if rest := rows[_MAX_ROWS:]:
        table.add_row(f"{len(rest)} more", f"{sum(found.ended for _, found in rest):.0f}", "", "")
    return table


def _tenant(name: str) -> str:
    return name or "(none)"


def bars(title: str, counts: Mapping[str, float], color: str, counted: str = "queries") -> Table:
    """Return a bar for each count, scaled to the largest; the least are summed up."""
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column(title, style="bold")
    table.add_column(counted, justify="right")
    table.add_column("share", justify="right")
    table.add_column("", width=_BAR_WIDTH)
    total, largest = sum(counts.values()), max(counts.values(), default=1.0)
    rows = list(counts.items())
    for name, count in rows[:_MAX_ROWS]:
        bar = Bar(largest, 0, count, width=_BAR_WIDTH, color=color)
        table.add_row(name, f"{count:.0f}", percent(count / total), bar)
    if rest := rows[_MAX_ROWS:]:
        count = sum(count for _, count in rest)
        table.add_row(f"{len(rest)} more", f"{count:.0f}", percent(count / total), "")
    return table


def percent(fraction: float) -> str:
    """Return a fraction as percent."""
    return number(fraction * 100, "{:.2f} %")


def milliseconds(duration_s: float) -> str:
    """Return seconds as milliseconds."""
    return number(duration_s * 1e3, "{:.1f} ms")


def pair(durations_s: tuple[float, float]) -> str:
    """Return two times in milliseconds."""
    first, second = (number(duration_s * 1e3, "{:.1f}") for duration_s in durations_s)
    return _NOTHING if second == _NOTHING else f"{first}, {second} ms"


def number(value: float, form: str) -> str:
    """Return a number in a form, a dash for NaN."""
    return _NOTHING if math.isnan(value) else form.format(value)
