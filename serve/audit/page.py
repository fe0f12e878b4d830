"""The report page of an audit: what leaks, what the defence costs, what it does not protect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 460, 220, 40
_COLOURS = {"permute_and_flip": "#1f5fa8", "laplace": "#b3541e"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .8em; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr + tr { border-top: 1px solid #ddd; }
thead tr { border-bottom: 2px solid #888; } .note { color: #555; }
"""
_NOT_PROTECTED = (
    "Copying: subnets of one supernet agree on most inputs, see the table of extraction. Reduced "
    "outputs, budgets and rates are what is left against it.",
    "Overload: deadlines come first. When drawn subnets are let go, the scheduler's own choice "
    "shows through.",
    "Several principals who collude: each has its own draws of the same input.",
    "Inputs changed a little are other inputs: there is an alert, not a defence.",
    "Whether a specification is served at all is visible, in steps of tiers and grid.",
)


def audit_page(record: Mapping[str, Any]) -> str:
    """Return the record as one HTML page without scripts."""
    parts = [
        "<h1>What the choice of models gives away</h1>",
        f'<p class="note">{escape(str(record.get("command", "")))}</p>',
        _leaks(record),
        _price(record),
        _copies(record),
        _curve(record.get("epsilon_curve") or []),
        _lists(record),
        "<h2>What it does not protect against</h2>",
        "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in _NOT_PROTECTED) + "</ul>",
        f'<p class="note">{escape(str(record.get("setting", "")))}</p>',
    ]
    title = "<title>supernet audit</title>"
    head = f'<meta charset="utf-8">{title}<style>{_STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _leaks(record: Mapping[str, Any]) -> str:
    figures: list[tuple[str, tuple[str, ...]]] = [
        ("queries until the victim is pinned", ("fingerprint", "queries_one")),
        ("queries until all are", ("fingerprint", "queries_all")),
        ("subnets pinned", ("fingerprint", "pinned")),
        ("best share of one subnet, naive", ("share", "naive")),
        ("best share, adaptive", ("share", "adaptive")),
        ("share under a flood of one's own", ("share", "flooded")),
        ("gain by repetition", ("share", "repetition_gain")),
        ("subnet told by the response, under load", ("timing", "accuracy")),
        ("by the response time alone", ("timing", "response_time_only")),
        ("chance: the largest class", ("timing", "chance")),
        ("median response time, s", ("timing", "p50_s")),
        ("advantage of membership inference", ("membership", "advantage")),
    ]
    rows = [[name, *(_at(record.get(s), path) for s in _sides(record))] for name, path in figures]
    return "<h2>What leaks</h2>" + _table(["", *_sides(record)], rows)


def _price(record: Mapping[str, Any]) -> str:
    names = (
        "goodput", "served_accuracy", "served_accuracy_lost", "additional_misses", "misses",
        "floor_violations", "queries",
    )  # fmt: skip
    if not any((record.get(side) or {}).get("price") for side in _sides(record)):
        return ""
    rows = [
        [name.replace("_", " "), *(_at(record.get(s), ("price", name)) for s in _sides(record))]
        for name in names
    ]
    overhead = record.get("overhead_us", {}).get("on")
    rows.append(["overhead per query, us", "0: none of its code runs", _shown(overhead)])
    return "<h2>The price</h2>" + _table(["honest users", *_sides(record)], rows)


def _copies(record: Mapping[str, Any]) -> str:
    rows = [
        [
            row["student"],
            row["arm"],
            row["budget"],
            _interval(row["accuracy"], row["accuracy_ci95"]),
            _interval(row["fidelity"], row["fidelity_ci95"]),
        ]
        for side in _sides(record)
        for row in (record.get(side) or {}).get("extraction", ())
    ]
    if not rows:
        return ""
    heads = ["student", "arm", "queries", "accuracy", "fidelity to the victim"]
    return "<h2>Extraction</h2>" + _table(heads, rows)


def _lists(record: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for side in _sides(record):
        rows = (record.get(side) or {}).get("checklist")
        if rows:
            marks = {True: "pass", False: "fail", None: "not seen"}
            cells = [[r["line"], r["requirement"], marks[r["passed"]], r["evidence"]] for r in rows]
            parts.append(f"<h2>OWASP AISVS C11.5, {side}</h2>")
            parts.append(_table(["line", "asks for", "", "evidence"], cells))
    return "".join(parts)


def _curve(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    plots = [
        _plot(rows, "largest_share", "largest share of one subnet"),
        _plot(rows, "accuracy_lost", "accuracy lost, a fraction"),
    ]
    legend = ", ".join(
        f'<span style="color:{colour}">{escape(name)}</span>' for name, colour in _COLOURS.items()
    )
    text = f"Of the highest tier at a lax deadline, exact; {legend}."
    return f"<h2>Over epsilon</h2><p>{text}</p>" + "".join(plots)


def _plot(rows: Sequence[Mapping[str, Any]], figure: str, title: str) -> str:
    """Return a picture of one figure over epsilon (a logarithmic axis from 0.1 to 50)."""
    import math

    top = max(row[figure] for row in rows) * 1.1 or 1.0
    epsilons = sorted({row["epsilon"] for row in rows})
    low, high = math.log(epsilons[0]), math.log(epsilons[-1])

    def place(row: Mapping[str, Any]) -> str:
        across = (math.log(row["epsilon"]) - low) / ((high - low) or 1.0)
        x = _MARGIN + across * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - _MARGIN - row[figure] / top * (_HEIGHT - 2 * _MARGIN)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
        + " ".join(place(row) for row in rows if row["mechanism"] == name)
        + '"/>'
        for name, colour in _COLOURS.items()
    )
    base = _HEIGHT - _MARGIN
    axes = (
        f'<line x1="{_MARGIN}" y1="{base}" x2="{_WIDTH - _MARGIN}" y2="{base}" stroke="#888"/>'
        f'<text x="{_MARGIN}" y="16" font-size="13">{escape(title)}, up to {top:.3g}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 12}" font-size="12">epsilon {epsilons[0]:g}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 12}" font-size="12" text-anchor="end">'
        f"{epsilons[-1]:g}</text>"
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{axes}{lines}</svg>'


def _sides(record: Mapping[str, Any]) -> list[str]:
    return [side for side in ("undefended", "defended") if record.get(side)]


def _at(side: Any, path: Iterable[str]) -> str:
    value = side
    for name in path:
        value = (value or {}).get(name)
    return _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "never"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(mean: float | None, half: float | None) -> str:
    if mean is None:
        return "no labels"
    return f"{mean * 100:.2f} %" + ("" if half is None else f" ± {half * 100:.2f}")


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
