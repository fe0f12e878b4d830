"""The pictures of one run on the report page, each with what it shows in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from traces.report import plots

Report = Mapping[str, Any]


def run_panels(
    reports: Sequence[Report], labels: Sequence[str], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one panel per run: figures with captions, on axes that all runs share."""
    zooms = [_zoomed(report) for report in reports]
    top_qps, limits = _shared_rate(reports), _shared_accuracy(reports)
    zoom_qps = _shared_rate([zoom for zoom in zooms if zoom is not None])
    panels: list[dict[str, Any]] = []
    for i, (report, zoom, label) in enumerate(zip(reports, zooms, labels, strict=True)):
        colour, _ = plots.policy_style(i)
        figures = [
            (_describe_rate(report), plots.offered_rate(report, colour, top_qps)),
            (_describe_subnets(report), plots.subnets_chosen(report, colours)),
            (_describe_accuracy(report), plots.served_accuracy(report, colour, limits)),
            (_describe_attainment(report), plots.attainment(report, colour)),
            (_describe_queue(report), plots.queue_depth(report, colour)),
        ]
        closer = [] if zoom is None else _zoom_figures(zoom, colour, colours, zoom_qps)
        panels.append(
            {
                "label": label,
                "colour": colour,
                "figures": _numbered(figures, f"p{i}"),
                "zoom": _numbered(closer, f"z{i}"),
                "zoom_caption": "" if zoom is None else _describe_zoom(report),
                "histograms": _numbered(_histograms(report, colour, colours), f"h{i}"),
            }
        )
    return panels


def picture(svg: str, prefix: str) -> Markup:
    """Return an SVG for the page, its ids made its own."""
    return Markup(plots.with_id_prefix(svg, prefix))


def percent(fraction: float | None) -> str:
    """Return a fraction as a person reads it, `-` for none."""
    return "-" if fraction is None else f"{fraction * 100:.2f}\N{NO-BREAK SPACE}%"


def ms(value: float | None) -> str:
    """Return milliseconds as a person reads them, `-` for none."""
    return "-" if value is None else f"{value:,.1f}"


def _numbered(figures: Sequence[tuple[str, str]], prefix: str) -> list[dict[str, Any]]:
    return [
        {"caption": text, "svg": picture(svg, f"{prefix}-{k}")}
        for k, (text, svg) in enumerate(figures)
    ]


def _zoomed(report: Report) -> Report | None:
    zoom = report.get("zoom")
    return None if not zoom else {**report, "series": zoom["series"]}


def _zoom_figures(
    zoom: Report, colour: str, colours: Mapping[str, str], top_qps: float
) -> list[tuple[str, str]]:
    return [
        ("Offered rate (line), on time (filled).", plots.offered_rate(zoom, colour, top_qps)),
        ("Subnets chosen (grey: not executed).", plots.subnets_chosen(zoom, colours)),
        ("The most queries that wait at once.", plots.queue_depth(zoom, colour)),
    ]


def _histograms(report: Report, colour: str, colours: Mapping[str, str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if report["subnets"]:
        found.append((_describe_histogram(report), plots.subnet_queries(report, colours)))
    if report.get("batch_sizes"):
        found.append((_describe_batches(report), plots.batch_sizes(report, colour)))
    return found


def _shared_rate(reports: Sequence[Report]) -> float:
    tops = [max(r["series"]["arrived"], default=0) / r["series"]["bin_s"] for r in reports]
    return max([*tops, 1e-9])


def _shared_accuracy(reports: Sequence[Report]) -> tuple[float, float]:
    served = [a * 100 for r in reports for a in r["series"]["accuracy"] if a is not None]
    low, high = (min(served), max(served)) if served else (0.0, 100.0)
    margin = max(0.12 * (high - low), 0.4)
    return max(low - margin, 0.0), min(high + margin, 100.4)


def _describe_zoom(report: Report) -> str:
    zoom = report["zoom"]
    arrived, on_time = sum(zoom["series"]["arrived"]), sum(zoom["series"]["on_time"])
    rate = arrived / zoom["length_s"]
    total = report["num_queries"] - report["outcomes"]["on_time"]
    missed = arrived - on_time
    which = (
        f"The {zoom['length_s']:.3g} s with the most misses" if missed else "No miss; the busiest"
    )
    which += "" if missed else f" {zoom['length_s']:.3g} s"
    share = f", {missed:,} of the run's {total:,}" if missed else ""
    return (
        f"{which}{share}, from {zoom['start_s']:.4g} s on: {rate:,.0f} queries/s, "
        f"{percent(on_time / max(arrived, 1))} on time."
    )


def _describe_queue(report: Report) -> str:
    most = report.get("max_waiting")
    if most is None:  # a report of before, whose series has the depth at the ends of its bins
        depths = report["series"]["queue_depth"]
        return f"Queries that were admitted and wait, at the ends of intervals: {max(depths):,}."
    return f"Queries that were admitted and wait: at most {most:,} at any moment."


def _describe_histogram(report: Report) -> str:
    return f"Queries per subnet: {len(report['subnets'])} of them were used."


def _describe_batches(report: Report) -> str:
    sizes = {int(size): count for size, count in report["batch_sizes"].items()}
    total = sum(sizes.values())
    mean = sum(size * count for size, count in sizes.items()) / max(total, 1)
    return f"Batches by size: {total:,} batches, {mean:.1f} queries on average."


def _describe_rate(report: Report) -> str:
    series = report["series"]
    rates = [n / series["bin_s"] for n in series["arrived"]]
    if not rates:
        return "Offered rate: nothing arrived."
    mean = report["num_queries"] / report["duration_s"]
    return (
        f"Offered rate (line) and the part answered on time (filled): mean {mean:,.0f}, "
        f"{min(rates):,.0f} to {max(rates):,.0f} queries/s per {series['bin_s']:g} s."
    )


def _describe_subnets(report: Report) -> str:
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
        f"Subnet that served each query, in the colours of the legend: {len(used)} used, "
        f"most often {first} ({share:.0%}); grey: not executed."
    )


def _describe_accuracy(report: Report) -> str:
    values = [a for a in report["series"]["accuracy"] if a is not None]
    if not values:
        return "Served accuracy: no answer was on time."
    mean = percent(report["mean_serving_accuracy"])
    if len(report["subnets"]) == 1:
        return f"Profiled accuracy of on-time answers: always {mean}."
    return (
        f"Profiled accuracy of on-time answers: mean {mean}, "
        f"from {percent(min(values))} to {percent(max(values))} per interval."
    )


def _describe_attainment(report: Report) -> str:
    values = [a for a in report["series"]["attainment"] if a is not None]
    if not values:
        return "Attainment: nothing arrived."
    bad = sum(a < 0.99 for a in values)
    if not bad:
        return f"Share answered within the SLO: at least {percent(min(values))} in every interval."
    return (
        f"Share answered within the SLO: below {percent(0.99)} in {bad} of {len(values)} "
        f"intervals, at worst {percent(min(values))}."
    )
