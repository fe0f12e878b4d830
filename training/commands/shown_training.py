"""A training run as it is seen: its bars, Ctrl-C, the table at its end."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from slackfit.plain_console import plain_console
from supernet import Checkpoint
from training.config import TrainConfig
from training.run import train as run_training
from training.trainer.distributed import ProcessGroup
from training.trainer.run_log import StepReport

_INTERRUPTED = 130

console = plain_console(stderr=True)


def train_with_progress(
    config: TrainConfig, out: Path, *, resume: bool, workers: ProcessGroup | None = None
) -> Checkpoint | None:
    """Train with a progress bar; Ctrl-C finishes the step, saves, and returns None."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    is_shown = workers is None or workers.is_first
    bar = Progress(*columns, console=console, disable=not is_shown)
    with bar as progress, _stop_on_interrupt() as stopped:
        steps = progress.add_task("full model", total=None, note="")
        archs = progress.add_task("evaluate", total=None, note="", visible=False)
        return run_training(
            config,
            out,
            resume=resume,
            progress=lambda report: _show_step(progress, steps, report),
            evaluation_progress=lambda done, total: progress.update(
                archs, completed=done, total=total, visible=True
            ),
            should_stop=lambda: bool(stopped),
            workers=workers,
            tell=warn,
        )


def warn(text: str) -> None:
    """Tell what a user should know."""
    console.print(Text.assemble(("warning:", "yellow"), f" {text}"), soft_wrap=True)


def stopped(words: Sequence[str]) -> typer.Exit:
    """Say by which command (its words) a run that was stopped goes on; return the exit to raise."""
    again = shlex.join(words)
    typer.echo(f"stopped; go on with: {again}", err=True)
    return typer.Exit(_INTERRUPTED)


def _show_step(progress: Progress, task: TaskID, report: StepReport) -> None:
    losses = {"loss": report.full_loss, "subnets": report.subnet_loss}
    note = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None)
    progress.update(
        task,
        completed=report.step,
        total=report.total_steps,
        description="full model" if report.subnet_loss is None else "shrinking",
        note=note,
    )


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Collect interrupts instead of raising in the middle of a step; the second one raises."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        console.print("stopping after this step (once more: at once)")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def table_of(checkpoint: Checkpoint) -> Table:
    """The served subnets and what they are worth."""
    table = Table(title=f"{checkpoint.name}: subnets on {checkpoint.accuracy_source}")
    for name in ("subnet", "MMACs", "params (M)", "accuracy (%)", "95 % interval"):
        table.add_column(name, justify="left" if name == "subnet" else "right")
    for s in checkpoint.subnets:
        low, high = s.ci95
        table.add_row(
            s.subnet_id,
            f"{s.macs / 1e6:.1f}",
            f"{s.params / 1e6:.3f}",
            f"{s.accuracy:.2%}".rstrip("%"),
            f"{low * 100:.1f} to {high * 100:.1f}",
        )
    return table
