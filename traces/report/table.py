"""The table that a run prints: one row per policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from traces.report.validity import marked, name_of

if TYPE_CHECKING:
    from rich.table import Table


_NOT_EXECUTED = ("dropped", "rejected", "failed")


def report_table(reports: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return a rich table of the reports, percentages for fractions; fits 80 columns.

    `met` is SLO attainment, `acc` the mean serving accuracy, `meas` the measured top-1 of the
    answers; `missed` counts the queries that were not answered on time, however they ended. A run
    that is invalid is marked beside its name. Latencies are of executed queries, as the caption
    says where some were not.
    """
    from rich import box
    from rich.table import Table

    has_measured = any(r.get("measured_accuracy") is not None for r in reports)
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    heads = ["met %", "acc %", *(["meas %"] if has_measured else [])]
    heads += ["util", "p50 ms", "p95 ms", "p99 ms", "missed"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for r in reports:
        measured = [_percent(r.get("measured_accuracy"))] if has_measured else []
        table.add_row(
            marked(name_of(r), r),
            _percent(r["slo_attainment"]),
            _percent(r["mean_serving_accuracy"]),
            *measured,
            f"{r['utility']:.4f}",
            _ms(r["latency_ms"]["p50"]),
            _ms(r["latency_ms"].get("p95")),
            _ms(r["latency_ms"]["p99"]),
            f"{r['num_queries'] - r['outcomes']['on_time']:,}",
        )
    if any(sum(r["outcomes"].get(s, 0) for s in _NOT_EXECUTED) for r in reports):
        table.caption = "latencies are of executed queries; missed ones have none"
        table.caption_justify = "left"
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 100:.2f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
