"""The page of a bootstrap: the front before and after, accuracy against minutes, the command."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

from slackfit.output_files import write_text
from supernet import Checkpoint
from training.bootstrap.journal import BootstrapJournal

PAGE = "report.html"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #ffffff; --rule: #d6dae0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181c; --rule: #3a4048; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1.5rem 0; background: #ffffff; border-radius: 6px; overflow-x: auto; }
figure svg { width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right;
       border-bottom: 1px solid var(--rule); } td:first-child, th:first-child { text-align: left; }
code { overflow-wrap: anywhere; }
"""


def write_page(out: Path, checkpoint: Checkpoint, journal: BootstrapJournal, command: str) -> Path:
    """Write `report.html` into the folder and return its path. Raises OutputError."""
    rows = _log(out)
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_e(checkpoint.name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><h1>{_e(checkpoint.name)}</h1>"
        f"<p>Accuracies: {_e(checkpoint.accuracy_source)}. Before training: on held-out samples, "
        "each subnet with statistics of its own.</p>"
        f"<figure>{_front(checkpoint, journal)}</figure>"
        f"<figure>{_curve(rows, journal)}</figure>{_table(checkpoint)}{_rates(journal)}"
        f"<p><code>{_e(command)}</code></p></html>\n"
    )
    write_text(out / PAGE, text)
    return out / PAGE


def _front(checkpoint: Checkpoint, journal: BootstrapJournal) -> str:
    axes, figure = _axes("MACs (millions)", "accuracy (%)", "Front before and after")
    before = journal.before
    axes.plot(
        [row["macs"] / 1e6 for row in before],
        [100 * row["accuracy"] for row in before],
        "o--", color="0.55", ms=4, label="as imported (held-out samples)",
    )  # fmt: skip
    subnets = checkpoint.subnets
    accuracies = [100 * s.accuracy for s in subnets]
    errors = [
        [a - 100 * s.ci95[0] for a, s in zip(accuracies, subnets, strict=True)],
        [100 * s.ci95[1] - a for a, s in zip(accuracies, subnets, strict=True)],
    ]
    axes.errorbar(
        [s.macs / 1e6 for s in subnets], accuracies, yerr=errors, fmt="o-", ms=4, lw=1,
        label="after (test samples, 95 %)",
    )  # fmt: skip
    axes.legend(loc="lower right")
    return _svg(figure)


def _curve(rows: list[dict[str, Any]], journal: BootstrapJournal) -> str:
    axes, figure = _axes(
        "minutes, with what was spent before training", "accuracy on held-out samples (%)",
        "While it trained",
    )  # fmt: skip
    seconds, points = journal.spent_s, []
    for row in rows:
        seconds += row.get("seconds", 0.0)
        seen = {n.removeprefix("accuracy/"): v for n, v in row.items() if n.startswith("accuracy/")}
        if seen:
            points.append((seconds / 60.0, seen))
    for name in points[0][1] if points else ():
        x, y = zip(*((at, 100 * seen[name]) for at, seen in points), strict=True)
        axes.plot(x, y, "o-", ms=3, lw=1, label=name)
    if points:
        axes.legend(loc="lower right", fontsize="small")
    return _svg(figure)


def _axes(x: str, y: str, title: str) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return axes, figure


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _table(checkpoint: Checkpoint) -> str:
    rows = "".join(
        f"<tr><td>{_e(s.subnet_id)}</td><td>{s.macs / 1e6:.1f}</td><td>{s.params / 1e6:.2f}</td>"
        f"<td>{100 * s.accuracy:.2f}</td></tr>"
        for s in checkpoint.subnets
    )
    return (
        "<table><tr><th>subnet</th><th>MMACs</th><th>M parameters</th><th>accuracy (%)</th></tr>"
        f"{rows}</table>"
    )


def _rates(journal: BootstrapJournal) -> str:
    if not journal.rates:
        return "<p>Too little time was given to try learning rates.</p>"
    tried = ", ".join(f"{r['lr']:.2g}: {100 * r['accuracy']:.1f} %" for r in journal.rates)
    return f"<p>Rates tried, and the mean accuracy that each led to: {tried}.</p>"


def _log(out: Path) -> list[dict[str, Any]]:
    try:
        lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _e(text: str) -> str:
    return html.escape(text)
