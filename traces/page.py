"""The report page: what the template needs, put into words and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from slackfit.query import STATUSES
from traces import plots

Report = Mapping[str, Any]

OUTCOME_COLOURS = {
    "on_time": "#009E73",
    "late": "#E69F00",
    "dropped": "#CC79A7",
    "rejected": "#56B4E9",
    "failed": "#D55E00",
}
OUTCOME_MEANINGS = {
    "on_time": "answered within the SLO",
    "late": "answered after the SLO",
    "dropped": "given up before running",
    "rejected": "refused on arrival",
    "failed": "error or no answer",
}
MAX_LEGEND = 9
_SHOWN_ELSEWHERE = {
    *("outcomes", "latency_ms", "subnets", "reasons", "batch_sizes", "series", "latency_cdf"),
    *("trace", "config", "command", "policy", "label", "run"),
    *("slo_attainment", "mean_serving_accuracy", "measured_accuracy", "utility", "goodput_qps"),
}


def render_page(reports: Sequence[Report], *, title: str) -> str:
    """Return the whole page for one or many reports.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("there are no reports to render")
    labels = unique_labels(reports)
    subnet_ids = _subnet_ids(reports)
    colours = plots.subnet_colours(subnet_ids)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("traces", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, ms=_ms, number=_number)
    return environment.get_template("report.html.j2").render(
        title=title,
        headline=_headline(reports, labels),
        warnings=_warnings(reports, labels),
        rows=[_row(i, r, labels[i]) for i, r in enumerate(reports)],
        has_measured=any(r.get("measured_accuracy") is not None for r in reports),
        outcome_colours=OUTCOME_COLOURS,
        outcome_meanings=OUTCOME_MEANINGS,
        plane=_picture(plots.plane(reports, labels), "plane"),
        latency_cdf=_picture(plots.latency_cdf(reports, labels), "cdf"),
        subnet_legend=_legend(subnet_ids, colours, _accuracies(reports)),
        policies=_policy_panels(reports, labels, colours),
        traces=_distinct_traces(reports),
        runs=[_provenance(r, label) for r, label in zip(reports, labels, strict=True)],
    )


def unique_labels(reports: Sequence[Report]) -> list[str]:
    """Return a name per report: its label or policy, with its run where names repeat."""
    names = [str(r.get("label") or r["policy"]) for r in reports]
    named = [
        f"{name} ({r['run']})" if names.count(name) > 1 and r.get("run") else name
        for name, r in zip(names, reports, strict=True)
    ]
    return [
        f"{name} #{named[:i].count(name) + 1}" if named.count(name) > 1 else name
        for i, name in enumerate(named)
    ]


def _headline(reports: Sequence[Report], labels: Sequence[str]) -> str:
    order = sorted(range(len(reports)), key=lambda i: -reports[i]["utility"])
    best = reports[order[0]]
    text = (
        f"{labels[order[0]]} answered {_percent(best['slo_attainment'])} of "
        f"{best['num_queries']:,} queries within {best['slo_ms']:g} ms, at "
        f"{_percent(best['mean_serving_accuracy'])} mean accuracy."
    )
    if len(reports) == 1:
        return text
    second = reports[order[1]]
    return (
        f"{text} That is the highest utility (attainment \N{MULTIPLICATION SIGN} accuracy) "
        f"of {len(reports)}: "
        f"{best['utility']:.3f} against {second['utility']:.3f} for {labels[order[1]]}."
    )


def _warnings(reports: Sequence[Report], labels: Sequence[str]) -> list[str]:
    texts: list[str] = []
    for report, label in zip(reports, labels, strict=True):
        if report.get("invalid_reason"):
            texts.append(f"{label}: this run is invalid, {report['invalid_reason']}.")
        if report.get("is_partial"):
            texts.append(f"{label}: this run was interrupted; it shows what was sent until then.")
    return texts


def _row(index: int, report: Report, label: str) -> dict[str, Any]:
    total = max(report["num_queries"], 1)
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in report.get("reasons", {}).items())
    colour, _ = plots.policy_style(index)
    return {
        "label": label,
        "colour": colour,
        "report": report,
        "measured_accuracy": report.get("measured_accuracy"),
        "outcomes": [
            {
                "name": status.replace("_", " "),
                "count": report["outcomes"].get(status, 0),
                "share": report["outcomes"].get(status, 0) / total * 100,
                "colour": OUTCOME_COLOURS[status],
            }
            for status in STATUSES
        ],
        "reasons": reasons,
    }


def _accuracies(reports: Sequence[Report]) -> dict[str, float]:
    return {s: entry["accuracy"] for r in reports for s, entry in r["subnets"].items()}


def _subnet_ids(reports: Sequence[Report]) -> list[str]:
    """Return every subnet that served, from the least to the most accurate."""
    accuracies = _accuracies(reports)
    return sorted(accuracies, key=lambda s: (accuracies[s], s))


def _legend(
    subnet_ids: Sequence[str], colours: Mapping[str, str], accuracies: Mapping[str, float]
) -> list[dict[str, str]]:
    """Return legend entries from small to large; of many subnets an even choice."""
    count = len(subnet_ids)
    if count > MAX_LEGEND:
        step = (count - 1) / (MAX_LEGEND - 1)
        subnet_ids = [subnet_ids[round(i * step)] for i in range(MAX_LEGEND)]
    return [
        {"name": s, "accuracy": _percent(accuracies[s]), "colour": colours[s]} for s in subnet_ids
    ]


def _policy_panels(
    reports: Sequence[Report], labels: Sequence[str], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    top_qps = max(max(r["series"]["arrived"], default=0) / r["series"]["bin_s"] for r in reports)
    served = [a * 100 for r in reports for a in r["series"]["accuracy"] if a is not None]
    low, high = (min(served), max(served)) if served else (0.0, 100.0)
    margin = max(0.12 * (high - low), 0.4)
    limits = (max(low - margin, 0.0), min(high + margin, 100.4))
    panels: list[dict[str, Any]] = []
    for i, (report, label) in enumerate(zip(reports, labels, strict=True)):
        colour, _ = plots.policy_style(i)
        figures = [
            (_say_rate(report), plots.offered_rate(report, colour, max(top_qps, 1e-9))),
            (_say_subnets(report), plots.subnets_chosen(report, colours)),
            (_say_accuracy(report), plots.served_accuracy(report, colour, limits)),
            (_say_attainment(report), plots.attainment(report, colour)),
        ]
        panels.append(
            {
                "label": label,
                "colour": colour,
                "figures": [
                    {"caption": text, "svg": _picture(svg, f"p{i}-{k}")}
                    for k, (text, svg) in enumerate(figures)
                ],
            }
        )
    return panels


def _picture(svg: str, prefix: str) -> Markup:
    return Markup(plots.with_id_prefix(svg, prefix))


def _say_rate(report: Report) -> str:
    series = report["series"]
    rates = [n / series["bin_s"] for n in series["arrived"]]
    if not rates:
        return "Offered rate: nothing arrived."
    mean = report["num_queries"] / report["duration_s"]
    return (
        f"Offered rate (line) and the part answered on time (filled): mean {mean:,.0f}, "
        f"{min(rates):,.0f} to {max(rates):,.0f} queries/s per {series['bin_s']:g} s."
    )


def _say_subnets(report: Report) -> str:
    used = report["subnets"]
    if not used and report["outcomes"]["on_time"] + report["outcomes"]["late"]:
        return "Subnets chosen: the server did not say which."
    if not used:
        return "Subnets chosen: none, nothing was executed (grey)."
    first = max(used, key=lambda s: used[s]["queries"])
    executed = sum(entry["queries"] for entry in used.values())
    if len(used) == 1:
        return f"Subnet that served each query: always {first} (grey: not executed)."
    share = used[first]["queries"] / executed
    return (
        f"Subnet that served each query, dark for small to light for large: {len(used)} used, "
        f"most often {first} ({share:.0%}); grey: not executed."
    )


def _say_accuracy(report: Report) -> str:
    values = [a for a in report["series"]["accuracy"] if a is not None]
    if not values:
        return "Served accuracy: no answer was on time."
    mean = _percent(report["mean_serving_accuracy"])
    if len(report["subnets"]) == 1:
        return f"Profiled accuracy of on-time answers: always {mean}."
    return (
        f"Profiled accuracy of on-time answers: mean {mean}, "
        f"from {_percent(min(values))} to {_percent(max(values))} per interval."
    )


def _say_attainment(report: Report) -> str:
    values = [a for a in report["series"]["attainment"] if a is not None]
    if not values:
        return "Attainment: nothing arrived."
    bad = sum(a < 0.99 for a in values)
    if not bad:
        return f"Share answered within the SLO: at least {_percent(min(values))} in every interval."
    return (
        f"Share answered within the SLO: below {_percent(0.99)} in {bad} of {len(values)} "
        f"intervals, at worst {_percent(min(values))}."
    )


def _distinct_traces(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return each trace once, its metadata flattened into rows of text."""
    traces: list[Any] = []
    for report in reports:
        if report.get("trace") and report["trace"] not in traces:
            traces.append(report["trace"])
    return [
        {"rows": _rows(trace)} if isinstance(trace, Mapping) else {"rows": [("trace", str(trace))]}
        for trace in traces
    ]


def _provenance(report: Report, label: str) -> dict[str, Any]:
    rest = {k: v for k, v in report.items() if k not in _SHOWN_ELSEWHERE and v not in (None, "")}
    return {
        "label": label,
        "command": report.get("command") or "",
        "rows": _rows(rest) + _rows(report.get("config") or {}),
    }


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested values into (name, text); a trace's metadata says what was asked for."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key == "metadata" and isinstance(value, Mapping):
            known = {name for name, _ in rows}
            rows += [(f"{n} asked for" if n in known else n, text) for n, text in _rows(value)]
        elif isinstance(value, Mapping):
            rows += _rows(value, f"{name}.")
        elif isinstance(value, float):
            rows.append((name, _number(value)))
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        elif value is not None and value != "":
            rows.append((name, str(value)))
    return rows


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 100:.2f}\N{NO-BREAK SPACE}%"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _number(value: float) -> str:
    return f"{value:,.6g}"
