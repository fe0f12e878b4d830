"""Figures that a report has beyond `slackfit.metrics.summarize`: tails, maxima, classes, tenants.

Latencies of executed queries flatter a policy that gives up the slow ones: beside them stand
quantiles of all queries that arrived, in which one without an answer took for ever. A maximum is
one over all moments, not over the ends of bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.query import Outcome
from traces.texts import Texts
from traces.trace import FloatArray, IntArray, Trace

QUANTILES = (50, 90, 95, 99)
MAX_GROUPS = 32
"""Classes or tenants that a report names one by one: those with the most queries."""


def with_figures(
    report: dict[str, Any], outcomes: Sequence[Outcome], trace: Trace
) -> dict[str, Any]:
    """Return the report with `latency_ms.p95`, `latency_all_ms`, `max_waiting`, groups and SLOs.

    `outcomes` are the report's own; their ids are places in `trace`, whose classes and tenants
    give `classes` and `tenants` (absent where the trace has none). `latency_all_ms` is None at a
    quantile that no answer reached. `series.queue_max` is the most that waited at any moment of a
    bin. `slos_ms` is the shortest and the longest deadline.
    """
    series = report["series"]
    edges_s = np.append(np.asarray(series["t_s"]), np.inf)
    waiting = most_waiting(outcomes, edges_s)
    slos_s = np.array([o.deadline_s - o.arrival_s for o in outcomes])
    detail: dict[str, Any] = {
        "latency_ms": {**report["latency_ms"], "p95": _p95_ms(outcomes)},
        "latency_all_ms": latency_all_ms(outcomes),
        "max_waiting": max(waiting, default=0),
        "slos_ms": [round(float(f(slos_s)) * 1e3, 6) for f in (np.min, np.max)] if outcomes else [],
        "series": {**series, "queue_max": waiting},
    }
    return {**report, **detail, **groups(outcomes, trace)}


def latency_all_ms(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Return latency quantiles (ms) of all queries; None where they fall on one without answer.

    A quantile is the least latency that at least so many per cent of the queries reached.
    """
    names = [f"p{q}" for q in QUANTILES]
    if not outcomes:
        return dict.fromkeys(names)
    took_s = np.sort([o.latency_s if _is_answered(o) else np.inf for o in outcomes])
    places = [max(int(np.ceil(len(took_s) * q / 100)) - 1, 0) for q in QUANTILES]
    return {
        name: float(took_s[i] * 1e3) if np.isfinite(took_s[i]) else None
        for name, i in zip(names, places, strict=True)
    }


def most_waiting(outcomes: Sequence[Outcome], edges_s: npt.NDArray[np.float64]) -> list[int]:
    """Return the most admitted queries that waited at any moment of each bin (E edges: E-1 bins).

    A query waits from its arrival until it starts, or ends unserved; at one moment those that go
    go before others come.
    """
    admitted = [o for o in outcomes if o.status != "rejected"]
    came_s = np.array([o.arrival_s for o in admitted])
    left_s = np.array([o.finish_s if o.start_s is None else o.start_s for o in admitted])
    times_s = np.concatenate([left_s, came_s])
    change = np.concatenate([np.full(left_s.size, -1), np.ones(came_s.size, dtype=np.int64)])
    order = np.argsort(times_s, kind="stable")  # at one moment: first those that leave
    depth = np.concatenate([[0], np.cumsum(change[order])])
    before = np.searchsorted(times_s[order], edges_s[:-1])  # changes before each bin
    most = depth[before].astype(np.int64)
    places = np.searchsorted(edges_s, times_s[order], side="right") - 1
    inside = (places >= 0) & (places < most.size)
    np.maximum.at(most, places[inside], depth[1:][inside])
    return np.maximum(most, 0).tolist()


def groups(outcomes: Sequence[Outcome], trace: Trace) -> dict[str, Any]:
    """Return `classes` and `tenants`: the figures of each, and of the `(others)` beyond 32."""
    ids = np.array([o.query_id for o in outcomes], dtype=np.int64)
    found: dict[str, Any] = {}
    if trace.query_class is not None:
        numbers, codes = np.unique(trace.query_class[ids], return_inverse=True)
        found["classes"] = _by_group(outcomes, [str(n) for n in numbers.tolist()], codes)
    if trace.tenant is not None:
        tenants: Texts = trace.tenant[ids]
        names = [name or "(unknown)" for name in tenants.names]
        found["tenants"] = _by_group(outcomes, names, tenants.codes)
    return found


def _by_group(
    outcomes: Sequence[Outcome], names: Sequence[str], codes: IntArray
) -> dict[str, dict[str, Any]]:
    counts = np.bincount(codes, minlength=len(names))
    largest = np.argsort(-counts, kind="stable")
    shown = np.sort(largest[: MAX_GROUPS if len(names) > MAX_GROUPS else len(names)])
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(counts)
    columns = _columns(outcomes)
    table: dict[str, dict[str, Any]] = {}
    rest: list[IntArray] = []
    for code in range(len(names)):
        rows = order[ends[code] - counts[code] : ends[code]]
        if code in shown and rows.size:
            table[names[code]] = _figures(columns, rows)
        else:
            rest.append(rows)
    others = np.concatenate([np.empty(0, np.int64), *rest])
    if others.size:
        table["(others)"] = _figures(columns, others)
    return table


def _columns(outcomes: Sequence[Outcome]) -> dict[str, FloatArray]:
    """Return on time (0 or 1), accuracy, latency (infinite without answer) and SLO per query."""
    rows = [
        (
            float(o.status == "on_time"),
            o.accuracy,
            o.latency_s if _is_answered(o) else np.inf,
            o.deadline_s - o.arrival_s,
        )
        for o in outcomes
    ]
    table = np.array(rows).reshape(-1, 4)
    return dict(zip(("on_time", "accuracy", "latency_s", "slo_s"), table.T, strict=True))


def _figures(columns: Mapping[str, FloatArray], rows: IntArray) -> dict[str, Any]:
    on_time = columns["on_time"][rows] > 0
    accuracy = columns["accuracy"][rows][on_time]
    latency_s = columns["latency_s"][rows]
    answered_ms = latency_s[np.isfinite(latency_s)] * 1e3
    attainment = float(on_time.mean())
    mean_accuracy = float(accuracy.mean()) if accuracy.size else 0.0
    quantiles = np.percentile(answered_ms, QUANTILES).tolist() if answered_ms.size else ()
    every = np.sort(latency_s)[max(int(np.ceil(0.99 * rows.size)) - 1, 0)]
    return {
        "num_queries": int(rows.size),
        "slo_attainment": attainment,
        "mean_serving_accuracy": mean_accuracy,
        "utility": attainment * mean_accuracy,
        "latency_ms": dict(
            zip((f"p{q}" for q in QUANTILES), quantiles or [None] * len(QUANTILES), strict=True)
        ),
        "p99_all_ms": float(every * 1e3) if np.isfinite(every) else None,
        "slo_ms": float(np.median(columns["slo_s"][rows]) * 1e3),
    }


def _p95_ms(outcomes: Sequence[Outcome]) -> float | None:
    took_s = [o.latency_s for o in outcomes if _is_answered(o)]
    return float(np.percentile(took_s, 95) * 1e3) if took_s else None


def _is_answered(outcome: Outcome) -> bool:
    return outcome.status in ("on_time", "late")
