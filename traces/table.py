"""The table that a run prints: one row per policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def report_table(reports: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return a rich table of the reports, percentages for fractions."""
    from rich.table import Table

    has_measured = any(r.get("measured_accuracy") is not None for r in reports)
    table = Table(title=title, title_justify="left")
    table.add_column("policy", overflow="fold")
    heads = ["attainment %", "accuracy %", *(["measured %"] if has_measured else [])]
    heads += ["utility", "p50 ms", "p99 ms", "goodput q/s"]
    heads += ["late", "dropped", "rejected", "failed"]
    for head in heads:
        table.add_column(head, justify="right")
    for r in reports:
        measured = [_percent(r.get("measured_accuracy"))] if has_measured else []
        table.add_row(
            str(r.get("label") or r["policy"]),
            _percent(r["slo_attainment"]),
            _percent(r["mean_serving_accuracy"]),
            *measured,
            f"{r['utility']:.4f}",
            _ms(r["latency_ms"]["p50"]),
            _ms(r["latency_ms"]["p99"]),
            f"{r['goodput_qps']:,.1f}",
            *(f"{r['outcomes'].get(s, 0):,}" for s in ("late", "dropped", "rejected", "failed")),
        )
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 100:.2f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
