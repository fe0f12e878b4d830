"""What a search shows: bars while it runs, then a table and a few lines."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from slackfit.plain_console import plain_console
from training.evaluation.search import Comparison, SearchResult


class SearchBars(Progress):
    """One bar per part of the search, on stderr."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=plain_console(stderr=True))
        self._rows: dict[str, TaskID] = {}

    def show(self, what: str, done: int, total: int) -> None:
        """Advance a part."""
        if what not in self._rows:
            self._rows[what] = self.add_task(what, total=total)
        self.update(self._rows[what], completed=done)


def print_search(result: SearchResult, comparison: Comparison, unit: str, what: str) -> None:
    """Print what was found and how good it is; costs are in `unit`, `what` is its accuracy."""
    console = plain_console()
    console.print(_table(result, unit, what))
    volumes = {"found": comparison.found, "ladder": comparison.ladder, "gain": comparison.gain}
    for name, volume in volumes.items():
        low, high = volume.ci95
        console.print(f"hyper-volume, {name}: {volume.value:.4f} ({low:.4f} to {high:.4f})")
    for d in comparison.dominated:
        console.print(
            f"{d.subnet.subnet_id} is beaten by {d.by.subnet_id}, no more expensive: "
            f"{100 * d.gain:.2f} points ({100 * d.ci95[0]:.2f} to {100 * d.ci95[1]:.2f})",
            soft_wrap=True,
        )
    if (quality := result.quality) is not None:
        tau = "-" if quality.tau is None else f"{quality.tau:.2f}"
        console.print(
            f"predictor: Kendall's tau {tau}, mean error {100 * quality.mean_error:.2f} points"
        )


def _table(result: SearchResult, unit: str, what: str) -> Table:
    scale = 1e3 if unit == "ms" else 1e-6
    table = Table(title=f"{len(result.subnets)} of {len(result.measured)} measured subnets")
    for name in ("subnet", "ms" if unit == "ms" else "MMACs", f"{what} (%)", "95 % interval"):
        table.add_column(name, justify="left" if name == "subnet" else "right")
    for s in result.subnets:
        low, high = (100 * x for x in s.ci95)
        table.add_row(
            s.arch.subnet_id, f"{s.cost * scale:.3g}", f"{s.test:.2%}".rstrip("%"),
            f"{low:.1f} to {high:.1f}",
        )  # fmt: skip
    return table
