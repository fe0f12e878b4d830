"""Figures that a report has beyond `slackfit.metrics.summarize`: tails, maxima, parts of the run.

Latencies of executed queries flatter a policy that gives up the slow ones: beside them stand
quantiles of all queries that arrived, in which one without an answer took for ever. A maximum is
one over all moments, not over the ends of bins. Every figure is per sample, as in `summarize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.outcome_columns import OutcomeColumns
from slackfit.query import Outcome
from traces.report.group_figures import QUANTILES, groups
from traces.trace import Trace


def with_figures(
    report: dict[str, Any], outcomes: Sequence[Outcome], trace: Trace
) -> dict[str, Any]:
    """Return the report with `latency_ms.p95`, `latency_all_ms`, `max_waiting`, groups and SLOs.

    `outcomes` are the report's own; their ids are places in `trace`, whose columns give `classes`,
    `tenants`, `sessions`, `prompt_tokens`, `output_tokens` and `sizes` (absent where the trace has
    none). `latency_all_ms` is None at a quantile that no answer reached. `series.queue_max` is the
    most that waited at any moment of a bin. `slos_ms` is the shortest and the longest deadline.
    """
    columns = OutcomeColumns.of(outcomes).per_sample()
    series = report["series"]
    edges_s = np.append(np.asarray(series["t_s"]), np.inf)
    waiting = most_waiting(columns, edges_s)
    slos_s = columns.deadline_s - columns.arrival_s
    detail: dict[str, Any] = {
        "latency_ms": {**report["latency_ms"], "p95": _p95_ms(columns)},
        "latency_all_ms": latency_all_ms(columns),
        "max_waiting": max(waiting, default=0),
        "slos_ms": [round(float(f(slos_s)) * 1e3, 6) for f in (np.min, np.max)] if outcomes else [],
        "series": {**series, "queue_max": waiting},
    }
    return {**report, **detail, **groups(columns, trace)}


def latency_all_ms(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Return latency quantiles (ms) of all queries; None where they fall on one without answer.

    A quantile is the least latency that at least so many per cent of the queries reached.
    """
    names = [f"p{q}" for q in QUANTILES]
    columns = OutcomeColumns.of(outcomes).per_sample()
    if not len(columns):
        return dict.fromkeys(names)
    took_s = np.sort(np.where(columns.executed, columns.latency_s, np.inf))
    places = [max(int(np.ceil(len(took_s) * q / 100)) - 1, 0) for q in QUANTILES]
    return {
        name: float(took_s[i] * 1e3) if np.isfinite(took_s[i]) else None
        for name, i in zip(names, places, strict=True)
    }


def most_waiting(outcomes: Sequence[Outcome], edges_s: npt.NDArray[np.float64]) -> list[int]:
    """Return the most admitted queries that waited at any moment of each bin (E edges: E-1 bins).

    A query waits from its arrival until it starts, or ends unserved; at one moment those that go
    go before others come. The most wait right after an arrival, or when the bin begins.
    """
    columns = OutcomeColumns.of(outcomes).per_sample()
    came_s = np.sort(columns.arrival_s[columns.admitted])
    left_s = np.sort(columns.left_s[columns.admitted])
    starts_s = edges_s[:-1]
    most = np.searchsorted(came_s, starts_s) - np.searchsorted(left_s, starts_s)
    depth = np.arange(1, came_s.size + 1) - np.searchsorted(left_s, came_s, side="right")
    places = np.searchsorted(edges_s, came_s, side="right") - 1
    inside = (places >= 0) & (places < most.size)
    np.maximum.at(most, places[inside], depth[inside])
    return np.maximum(most, 0).tolist()


def _p95_ms(columns: OutcomeColumns) -> float | None:
    took_s = columns.latency_s[columns.executed]
    return float(np.percentile(took_s, 95) * 1e3) if took_s.size else None
