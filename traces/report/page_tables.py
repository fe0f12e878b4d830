"""The report page's tables: why queries were missed, runs compared, live against simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from traces.report.paired import FIGURES, Difference, paired_differences
from traces.report.panels import ms, percent
from traces.report.validity import is_valid

Report = Mapping[str, Any]

REASON_MEANINGS = {
    "late": "answered after its deadline",
    "infeasible": "no subnet could have made the deadline any more",
    "expired": "the deadline passed while it waited",
    "queue_full": "too many queries waited already",
    "draining": "the server was shutting down",
    "not_ready": "the server was starting",
    "cancelled": "the client went away, or the run ended first",
    "execution_failed": "the model failed on its batch",
}
FIGURE_NAMES = {
    "p50_ms": "P50 latency",
    "p95_ms": "P95 latency",
    "slo_attainment": "Attainment",
    "mean_serving_accuracy": "Accuracy",
}
_SHORT = dict(zip(FIGURES, ("attainment", "accuracy", "utility"), strict=True))
_SIMULATIONS = {
    "fidelity": "batch times from the profile",
    "fidelity_at_live_speed": "a device as slow as the live one was",
}


def comparison(
    reports: Sequence[Report], labels: Sequence[str], intervals: Sequence[tuple[float, float]]
) -> list[dict[str, str]]:
    """Return each further run's differences from the first, with what of them is beyond chance.

    Runs of one trace are compared bin by bin; of others only the attainments' intervals tell.
    """
    first = reports[0]
    rows: list[dict[str, str]] = []
    for report, label, interval in zip(reports[1:], labels[1:], intervals[1:], strict=True):
        paired = paired_differences(first, report)
        rows.append(
            {
                "label": label,
                "attainment": _points(report["slo_attainment"] - first["slo_attainment"]),
                "accuracy": _points(
                    report["mean_serving_accuracy"] - first["mean_serving_accuracy"]
                ),
                "utility": f"{report['utility'] - first['utility']:+.4f}",
                **_intervals(paired),
                "p50": _relative(report["latency_ms"]["p50"], first["latency_ms"]["p50"]),
                "p99": _relative(report["latency_ms"]["p99"], first["latency_ms"]["p99"]),
                "verdict": _verdict(paired, interval, intervals[0])
                if is_valid(first) and is_valid(report)
                else "nothing: a run is invalid",
            }
        )
    return rows


def _intervals(paired: Mapping[str, Difference] | None) -> dict[str, str]:
    """Return the paired intervals as texts, empty for runs of other traces."""
    if paired is None:
        return dict.fromkeys(("attainment_95", "accuracy_95", "utility_95"), "")
    shown = [
        f"{difference.low * scale:+.{digits}f} to {difference.high * scale:+.{digits}f}"
        for difference, scale, digits in zip(
            (paired[name] for name in FIGURES), (100, 100, 1), (2, 2, 4), strict=True
        )
    ]
    return dict(zip(("attainment_95", "accuracy_95", "utility_95"), shown, strict=True))


def _verdict(
    paired: Mapping[str, Difference] | None,
    interval: tuple[float, float],
    first: tuple[float, float],
) -> str:
    if paired is None:
        are_apart = interval[0] > first[1] or interval[1] < first[0]
        return "attainment (other traffic)" if are_apart else "nothing (other traffic)"
    beyond = [_SHORT[name] for name in FIGURES if paired[name].is_beyond_chance]
    return ", ".join(beyond) or "nothing"


def misses(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return what kept queries from being answered in time, most frequent first."""
    counts: dict[str, list[int]] = {}
    for i, report in enumerate(reports):
        late = {"late": report["outcomes"].get("late", 0)}
        for reason, count in {**late, **report.get("reasons", {})}.items():
            counts.setdefault(reason, [0] * len(reports))[i] = count
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    return [
        {"reason": reason, "meaning": REASON_MEANINGS.get(reason, ""), "counts": numbers}
        for reason, numbers in ordered
        if any(numbers)
    ]


def fidelity(reports: Sequence[Report], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return live against simulated figures of the runs that have them."""
    tables: list[dict[str, Any]] = []
    for report, label in zip(reports, labels, strict=True):
        for key, how in _SIMULATIONS.items():
            if report.get(key):
                rows = [
                    {"name": FIGURE_NAMES[name], **_shown(name, row)}
                    for name, row in report[key].items()
                ]
                tables.append({"label": label, "how": how, "rows": rows})
    return tables


def _shown(name: str, row: Mapping[str, float | None]) -> dict[str, str]:
    is_latency = name.endswith("_ms")
    show = (lambda v: f"{ms(v)} ms") if is_latency else percent
    error = row["error"]
    shown = "-" if error is None else f"{error:+.1%}" if is_latency else _points(error)
    return {"live": show(row["live"]), "simulated": show(row["simulated"]), "error": shown}


def _points(difference: float) -> str:
    return f"{difference * 100:+.2f} points"


def _relative(value: float | None, base: float | None) -> str:
    if value is None or not base:
        return "-"
    return f"{value / base - 1:+.1%}" if value < 3 * base else f"{value / base:,.1f} times"
