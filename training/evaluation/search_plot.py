"""The picture of a search: what was measured, the front, its intervals on the test images."""

from __future__ import annotations

from pathlib import Path

from training.evaluation.search import SearchResult


def plot_search(result: SearchResult, path: Path, title: str, unit: str) -> None:
    """Write a picture; `unit` is `MACs` or `ms`, the suffix of `path` says which format."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    scale = 1e3 if unit == "ms" else 1e-6
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    measured = list(result.measured.values())
    axes.scatter(
        [aim.cost * scale for aim in measured],
        [aim.accuracy * 100 for aim in measured],
        s=12, color="0.7", label="measured (validation)",
    )  # fmt: skip
    x = [s.cost * scale for s in result.subnets]
    y = [s.test * 100 for s in result.subnets]
    below = [(s.test - s.ci95[0]) * 100 for s in result.subnets]
    above = [(s.ci95[1] - s.test) * 100 for s in result.subnets]
    axes.errorbar(x, y, yerr=[below, above], fmt="o", ms=4, lw=1, label="front (test, 95 %)")
    axes.set_xlabel("latency (ms)" if unit == "ms" else "MACs (millions)")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title.replace("$", r"\$"))  # a name, and no formula
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
