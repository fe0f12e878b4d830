"""`supernet bench training`: options; the work is in `bench.py`, imported when it runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from serve.bench.rows import write_rows
from slackfit.output_files import OutputError, check_outputs
from slackfit.user_errors import user_errors


def bench_training(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Array folder, e.g. CIFAR-10; default: digits.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept, to go on from.")] = Path(
        "runs/bench_training"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: 40 of digits, 30 of a folder.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=0, help="Training images, 0: all; default 320 or 10,000."),
    ] = None,
    case: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME...]", help="Only these; all: every one.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default.")] = 0,
) -> None:
    """Train with every strategy, everything else equal: accuracy at five sizes, wall time."""
    import torch

    from serve.bench.training.bench import TrainingBench
    from serve.bench.training.cases import CASES, QUICK, base_config

    stopped: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: stopped.append(number))
    try:
        with user_errors(ValueError, OSError, RuntimeError):
            check_outputs(json_out, folders=[out])
            if threads:
                torch.set_num_threads(threads)
            names = CASES if case == "all" else tuple(case.split(",")) if case else QUICK
            bench = TrainingBench(
                out,
                base_config(data, epochs=epochs, images=images, threads=threads),
                cases=names,
                num_seeds=seeds,
                tell=lambda text: typer.echo(text, err=True),
            )
            rows = bench.run(should_stop=lambda: bool(stopped))
            if not stopped:
                rows.append(bench.step_cost())
    finally:
        signal.signal(signal.SIGINT, previous)
    lines = (
        f"{row['figure']:<44} {row['value']:10.4f} {row['unit']:<9}"
        f"{row['detail'].get('spread', 0):.4f}"
        for row in rows
    )
    with user_errors(OutputError):
        write_rows(rows, json_out, "\n".join(lines))
    if stopped:
        typer.echo("stopped; the same command goes on where it was", err=True)
        raise typer.Exit(130)
