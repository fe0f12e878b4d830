"""The report page: what the template needs, put into words and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jinja2

from slackfit.query import STATUSES
from traces.report import plots
from traces.report.group_figures import GROUP_KEYS
from traces.report.group_tables import groups, repeats
from traces.report.intervals import attainment_intervals, widest
from traces.report.page_tables import comparison, fidelity, misses
from traces.report.panels import ms, percent, picture, run_panels
from traces.report.stream_pictures import stream_section
from traces.report.validity import marked, name_of, valid_ones

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
_LONGEST_RUN = 32  # letters of a label
_SHOWN_ELSEWHERE = {
    *("outcomes", "latency_ms", "subnets", "reasons", "batch_sizes", "series", "latency_cdf"),
    *("trace", "config", "command", "policy", "label", "run", "zoom", "slo_attainment_95"),
    *("fidelity", "fidelity_at_live_speed", "latency_all_ms", "repeat", "max_waiting", "slos_ms"),
    *GROUP_KEYS,
    *("streams", "timeline", "load_curve", "kind"),
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
    intervals = [widest(r.get("slo_attainment_95") or attainment_intervals(r)) for r in reports]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("traces.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, ms=ms, number=_number)
    return environment.get_template("report.html.j2").render(
        title=title,
        headline=_headline(reports, labels),
        warnings=_warnings(reports, labels),
        rows=[_row(i, r, labels[i], intervals[i]) for i, r in enumerate(reports)],
        comparison=comparison(reports, labels, intervals),
        groups=groups(reports, labels),
        repeats=repeats(reports),
        misses=misses(reports),
        fidelity=fidelity(reports, labels),
        has_measured=any(r.get("measured_accuracy") is not None for r in reports),
        outcome_colours=OUTCOME_COLOURS,
        outcome_meanings=OUTCOME_MEANINGS,
        plane=picture(plots.plane(reports, labels, intervals), "plane"),
        latency_cdf=picture(plots.latency_cdf(reports, labels), "cdf"),
        streams=stream_section(reports, labels, colours),
        subnet_legend=_legend(subnet_ids, colours, _accuracies(reports)),
        policies=run_panels(reports, labels, colours),
        traces=_distinct_traces(reports),
        runs=[_provenance(r, label) for r, label in zip(reports, labels, strict=True)],
    )


def unique_labels(reports: Sequence[Report]) -> list[str]:
    """Return a name per report: its label or policy, with its run where names repeat.

    Of runs that are paths no more is said than tells them apart: plots have to hold it.
    """
    names = [name_of(r) for r in reports]
    runs = _without_common_folders([str(r.get("run") or "") for r in reports])
    named = [
        f"{name} ({run})" if names.count(name) > 1 and run else name
        for name, run in zip(names, runs, strict=True)
    ]
    told_apart = [
        f"{name} #{named[:i].count(name) + 1}" if named.count(name) > 1 else name
        for i, name in enumerate(named)
    ]
    return [marked(name, report) for name, report in zip(told_apart, reports, strict=True)]


def _without_common_folders(runs: Sequence[str]) -> list[str]:
    """Return paths without the folders that all of them begin with; of a long rest its end."""
    parts = [PurePath(run).parts for run in runs]
    folders = zip(*(each[:-1] for each in parts if each), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, folders))
    short = [str(PurePath(*each[shared:])) if each else "" for each in parts]
    return [run if len(run) <= _LONGEST_RUN else f"...{run[3 - _LONGEST_RUN :]}" for run in short]


def _headline(reports: Sequence[Report], labels: Sequence[str]) -> str:
    order = sorted(valid_ones(reports), key=lambda i: -reports[i]["utility"])
    if not order:
        which = "This run is" if len(reports) == 1 else f"All {len(reports)} runs are"
        return f"{which} invalid: the generator did not keep its times, see below."
    best = reports[order[0]]
    if best.get("kind") == "streams":
        return _stream_headline(best, labels[order[0]])
    text = (
        f"{labels[order[0]]} answered {percent(best['slo_attainment'])} of "
        f"{best['num_queries']:,} queries within {_slo(best)}, at "
        f"{percent(best['mean_serving_accuracy'])} mean accuracy."
    )
    if len(order) == 1:
        left_out = len(reports) - 1
        return text if not left_out else f"{text} No other run of {len(reports)} is valid."
    second = reports[order[1]]
    return (
        f"{text} That is the highest utility (attainment \N{MULTIPLICATION SIGN} accuracy) "
        f"of {len(order)}{'' if len(order) == len(reports) else ' valid runs'}: "
        f"{best['utility']:.3f} against {second['utility']:.3f} for {labels[order[1]]}."
    )


def _stream_headline(report: Report, label: str) -> str:
    return (
        f"{label} served {percent(report['slo_attainment'])} of {report['num_queries']:,} streams "
        f"with a fluidity of {report['streams']['least_fluidity_on_time']:g} or more, at "
        f"{percent(report['mean_serving_accuracy'])} mean quality."
    )


def _slo(report: Report) -> str:
    shortest, longest = report.get("slos_ms") or [report["slo_ms"]] * 2
    if longest - shortest <= 1e-3 * longest:
        return f"{report['slo_ms']:g} ms"
    return f"their SLOs ({shortest:g} to {longest:g} ms)"


def _warnings(reports: Sequence[Report], labels: Sequence[str]) -> list[str]:
    texts: list[str] = []
    for report, label in zip(reports, labels, strict=True):
        if report.get("invalid_reason"):
            texts.append(f"{label}: this run is invalid, {report['invalid_reason']}.")
        if report.get("is_partial"):
            texts.append(f"{label}: this run was interrupted; it shows what was sent until then.")
        if report.get("is_served_accuracy_known") is False:
            texts.append(
                f"{label}: the server does not say how accurate its answers are, so accuracy and "
                "utility are 0 here; labels give the measured accuracy."
            )
    return texts


def _row(index: int, report: Report, label: str, interval: tuple[float, float]) -> dict[str, Any]:
    total = max(report["num_queries"], 1)
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in report.get("reasons", {}).items())
    colour, _ = plots.policy_style(index)
    return {
        "label": label,
        "colour": colour,
        "report": report,
        "interval": f"{interval[0] * 100:.2f} to {interval[1] * 100:.2f}",
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
        "p95": ms(report["latency_ms"].get("p95")),
        "p99_all": _of_all(report, "p99"),
    }


def _of_all(report: Report, quantile: str) -> str:
    """Return a latency quantile of all queries; one that falls on an unanswered query says so."""
    found = report.get("latency_all_ms")
    if not found or not report["num_queries"]:
        return "-"
    return "no answer" if found[quantile] is None else ms(found[quantile])


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
        {"name": s, "accuracy": percent(accuracies[s]), "colour": colours[s]} for s in subnet_ids
    ]


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


def _number(value: float) -> str:
    return f"{value:,.6g}"
