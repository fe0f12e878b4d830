"""A plan as one page: what to buy, what changes the price, the day, and what was dropped."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from traces.planning.planner import EVERY_FLEET
from traces.planning.verification import verification_lines

_CHANGE = re.compile(r"(.+) ([x+-].+)")
_FIGURES = ("attainment", "fluidity", "accuracy")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}
td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:13px}"""


def plan_page(plan: Mapping[str, Any]) -> str:
    """Return the page as HTML; it needs nothing beside itself."""
    parts = [f"<h1>Plan</h1><p><code>{html.escape(str(plan.get('command', '')))}</code></p>"]
    if plan["saturated"]:
        parts.append(f"<p><b>Saturated.</b> {html.escape(plan['why'])}.</p>")
    else:
        parts += [part(plan) for part in _PARTS]
    parts.append(_certificates(plan))
    parts.append(_dropped(plan["dropped"]))
    prices = plan["prices"]
    if prices["dated"]:
        where = f"Prices in {prices['currency']} as of {prices['dated']}. {prices['source']}"
        parts.append(f"<p>{html.escape(where)}</p>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Plan</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _chosen(plan: Mapping[str, Any]) -> str:
    rows = [("cheapest", plan), ("runner-up", plan["runner_up"])]
    table = [
        (
            name,
            fleet["fleet"],
            fleet["policy"],
            _offered(fleet),
            fleet["routing"],
            f"{fleet['cost_per_hour']:g}",
            *(_with_interval(fleet, n) for n in _FIGURES if f"{n}_interval" in fleet),
        )
        for name, fleet in rows
        if fleet
    ]
    headroom = plan["headroom"]
    heads = (
        *("", "fleet", "policy", "subnets", "routing", "an hour"),
        *(name for name in _FIGURES if f"{name}_interval" in plan),
    )
    return (
        _table(heads, table)
        + _pools(plan)
        + f"<p>Here {html.escape(undercut(plan))}. The promise is first missed at "
        f"{headroom['factor']:.2f} times the load; up to {headroom['low']:.2f} times 95 of 100 "
        f"redrawn traces keep it. Of {html.escape(plan['answers_of'])}.{_in_python(plan)}</p>"
        + _groups(plan)
    )


def _pools(plan: Mapping[str, Any]) -> str:
    """Return who gets which part of the queries, in a fleet of two types."""
    pools = plan.get("pools", [])
    if len(pools) < 2:
        return ""
    rows = [
        (f"{p['workers']} x {p['device']}", f"{p['share']:.1%}", p["policy"], _offered(p))
        for p in pools
    ]
    return _table(("devices", "of the queries", "policy", "subnets"), rows)


def undercut(plan: Mapping[str, Any]) -> str:
    """Return what no policy does with less than, in words: devices as the fleet has them, price."""
    pools, least = plan.get("pools", []), plan["certificate_workers"]
    fewest = f"no policy needs fewer than {least} x {plan['device']}"
    if len(pools) > 1:
        cheap, dear = pools[0], pools[1]
        fewest = (
            f"with {dear['workers']} x {dear['device']} no policy needs fewer than "
            f"{least - dear['workers']} x {cheap['device']}"
        )
    of = "" if plan["certificate_of"] == EVERY_FLEET else " of one type"
    return f"{fewest}, no fleet{of} costs less than {plan['certificate_cost']:g} an hour"


def _in_python(plan: Mapping[str, Any]) -> str:
    why = plan["simulated_by"]
    return "" if why == "compiled" else f" Simulated in Python: {html.escape(why)}."


def _offered(fleet: Mapping[str, Any]) -> str:
    largest = f", batches to {fleet['max_batch']}" if "max_batch" in fleet else ""
    return f"{len(fleet['subnets'])}{largest}"


def _groups(plan: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{found['attainment']:.4%}", f"{found['accuracy']:.4%}")
        for name, found in plan.get("groups", {}).items()
    ]
    return _table(("group", "attainment", "accuracy"), rows) if rows else ""


def _routings(plan: Mapping[str, Any]) -> str:
    rows = [
        (row["routing"], "none do" if row["workers"] is None else str(row["workers"]))
        for row in plan["routings"]
    ]
    return "<h2>Routing</h2>" + _table(("how queries get to devices", "devices"), rows)


def _verification(plan: Mapping[str, Any]) -> str:
    if "verification" not in plan:
        return ""
    lines = "\n".join(verification_lines(plan["verification"]))
    return f"<h2>Foretold and live</h2><pre>{html.escape(lines)}</pre>"


def _with_interval(fleet: Mapping[str, Any], name: str) -> str:
    low, high = fleet[f"{name}_interval"]
    return f"{fleet[name]:.4%} ({low:.4%} to {high:.4%})"


def _load_curve(plan: Mapping[str, Any]) -> str:
    """Return attainment and accuracy over load, and the table of seeds where there are several."""
    curve = plan["load_curve"]
    axes, figure = _axes(7.0, 2.8)
    factors = [row["factor"] for row in curve]
    for name in (name for name in _FIGURES if name in curve[0]):
        axes.plot(factors, [100 * row[name] for row in curve], marker="o", label=name)
        if plan["promise"][name]:
            axes.axhline(100 * plan["promise"][name], color="#a0aec0", linestyle=":")
    axes.axvline(plan["headroom"]["factor"], color="#c53030", linestyle="--", label="first missed")
    axes.set_xlabel("times the load")
    axes.set_ylabel("%")
    axes.legend(frameon=False)
    seeds = [(str(s["seed"]), f"{s['attainment']:.4%}", f"{s['accuracy']:.4%}") for s in
             plan["seeds"]]  # fmt: skip
    table = _table(("seed", "attainment", "accuracy"), seeds) if len(seeds) > 1 else ""
    return f"<h2>Load</h2>{_svg(figure)}{table}"


def _neighbours(plan: Mapping[str, Any]) -> str:
    rows = [
        (
            row["change"],
            row.get("fleet", "none"),
            row.get("policy", ""),
            "" if row["times"] is None else f"{row['times']:.2f}",
        )
        for row in plan["neighbours"]
    ]
    return (
        "<h2>Neighbouring promises</h2>"
        + _prices(plan)
        + _table(("change", "fleet", "policy", "times the price"), rows)
    )


def _prices(plan: Mapping[str, Any]) -> str:
    """Return the price against each thing that a neighbouring promise changes, a panel each."""
    panels: dict[str, list[tuple[str, float | None]]] = {}
    for row in plan["neighbours"]:
        name, change = _CHANGE.fullmatch(row["change"]).groups()  # type: ignore[union-attr]
        panel = panels.setdefault(name, [("promised", plan["cost_per_hour"])])
        place = 0 if change.startswith(("x0", "-")) else len(panel)
        panel.insert(place, (change, row["cost_per_hour"]))
    figure = _figure(7.0, 2.6)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, points) in zip(all_axes, panels.items(), strict=True):
        places = range(len(points))
        costs = [float("nan") if cost is None else cost for _, cost in points]
        axes.plot(places, costs, marker="o", color="#2b6cb0")
        for place, (_, cost) in zip(places, points, strict=True):
            text = "none does" if cost is None else f"{cost:g}"
            at = plan["cost_per_hour"] if cost is None else cost
            axes.annotate(text, (place, at), (0, 5), textcoords="offset points", ha="center")
        changes = [change.replace(" points", " pt") for change, _ in points]
        axes.set_xticks(places, changes, fontsize=8)
        axes.set_title(name)
        axes.set_xlim(-0.4, len(points) - 0.6)
        axes.spines[["top", "right"]].set_visible(False)
    most = max(cost or 0.0 for points in panels.values() for _, cost in points)
    all_axes[0].set_ylim(0, 1.25 * most)  # of all, since they share it
    all_axes[0].set_ylabel(f"{plan['prices']['currency']} an hour")
    return _svg(figure)


def _day(plan: Mapping[str, Any]) -> str:
    if not plan["day"]:
        return ""
    axes, figure = _axes(7.0, 2.8)
    hours = [row["hour"] for row in plan["day"]]
    axes.step(hours, [row["workers"] for row in plan["day"]], where="post", label="planned")
    axes.step(
        hours, [row["clairvoyant"] for row in plan["day"]], where="post", linestyle="--",
        label="rate / full batches",
    )  # fmt: skip
    axes.set_xlabel("hour")
    axes.set_ylabel("devices")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    total = sum(row["device_hours"] for row in plan["day"])
    always = plan["workers"] * len(hours)
    return (
        f"<h2>The day</h2>{_svg(figure)}<p>{total:.1f} device hours with starts in advance, "
        f"{always} if the fleet stays as it is.</p>"
    )


def _zoo(plan: Mapping[str, Any]) -> str:
    names = {"one_model": "one model alone", "switching": "several, loaded when wanted"}
    rows = [
        (names[key], "none does" if not row else f"{row['workers']} ({row['policy']})",
         "" if not row else f"{row['times']:.2f}")
        for key, row in plan["zoo"].items()
    ]  # fmt: skip
    return "<h2>Separate models instead</h2>" + _table(("", "devices", "times the price"), rows)


_PARTS = (_chosen, _load_curve, _verification, _neighbours, _routings, _day, _zoo)


def _certificates(plan: Mapping[str, Any]) -> str:
    rows = [
        (name, *(str(c[key]) for key in ("mean", "windows", "program", "workers")))
        for name, c in plan["certificates"].items()
    ]
    heads = ("device", "by mean rate", "by windows", "by linear program", "certificate")
    return "<h2>What no policy can undercut</h2>" + _table(heads, rows)


def _dropped(dropped: Sequence[Mapping[str, str]]) -> str:
    if not dropped:
        return ""
    rows = [(row["candidate"], row["why"]) for row in dropped]
    return "<h2>Dropped</h2>" + _table(("candidate", "why"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _axes(width: float, height: float) -> tuple[Any, Any]:
    figure = _figure(width, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes, figure


def _figure(width: float, height: float) -> Any:
    # By name: pictures are drawn only here, and matplotlib is slow to import.
    return import_module("matplotlib.figure").Figure(figsize=(width, height))


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
