"""The report page's tables of parts of runs, such as tenants, and of repeats of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traces.report.group_figures import GROUP_KEYS
from traces.report.panels import ms, percent
from traces.report.validity import valid_ones

Report = Mapping[str, Any]

_REPEATED = (
    ("slo_attainment", "Attainment", percent),
    ("mean_serving_accuracy", "Accuracy", percent),
    ("utility", "Utility", lambda value: f"{value:.4f}"),
)


_TITLES = dict(
    zip(
        GROUP_KEYS,
        ("Class", "Tenant", "Session", "Prompt tokens", "Output tokens", "Size"),
        strict=True,
    )
)


def groups(reports: Sequence[Report], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each run a table per column of its trace that tells more than one group apart."""
    runs: list[dict[str, Any]] = []
    for report, label in zip(reports, labels, strict=True):
        tables = [
            {"what": what, "rows": [_row(name, figures) for name, figures in found.items()]}
            for key, what in _TITLES.items()
            if len(found := report.get(key) or {}) > 1
        ]
        if tables:
            runs.append({"label": label, "tables": tables})
    return runs


def _row(name: str, figures: Mapping[str, Any]) -> dict[str, str]:
    latency_ms = figures["latency_ms"]
    return {
        "name": name,
        "queries": f"{figures['num_queries']:,}",
        "slo": f"{figures['slo_ms']:g}",
        "attainment": percent(figures["slo_attainment"]),
        "accuracy": percent(figures["mean_serving_accuracy"]),
        "p50": ms(latency_ms["p50"]),
        "p95": ms(latency_ms["p95"]),
        "p99": ms(latency_ms["p99"]),
    }


def repeats(reports: Sequence[Report]) -> list[dict[str, str]]:
    """Return mean and range of each figure over the repeats of a run; invalid ones are left out."""
    runs: dict[str, list[Report]] = {}
    for i in valid_ones(reports):
        if reports[i].get("repeat"):
            name = str(reports[i].get("label") or reports[i]["policy"])
            runs.setdefault(name, []).append(reports[i])
    rows: list[dict[str, str]] = []
    for name, found in runs.items():
        for key, title, show in _REPEATED:
            values = np.array([report[key] for report in found])
            if len(found) > 1:
                rows.append(
                    {
                        "label": name,
                        "figure": title,
                        "count": str(len(found)),
                        "mean": show(float(values.mean())),
                        "range": f"{show(float(values.min()))} to {show(float(values.max()))}",
                    }
                )
    return rows
