"""`supernet bench training`: options; the work is in `bench.py`, imported when it runs."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from serve.bench.rows import write_rows
from slackfit.output_files import check_outputs
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
    part: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="strategies; pairs: distillation over layer pairs; ideas, judged on validation; "
            "alone: each size by itself.",
        ),
    ] = "strategies",
    case: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these instead of parts; all: every one. NAME+NAME does what both do.",
        ),
    ] = None,
    judge: Annotated[
        str, typer.Option(help="test or validation: which images cases are compared on at last.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default.")] = 0,
) -> None:
    """Compare trainings at equal processor time: rates tuned on validation, then several seeds.

    Every finished run is kept in --out, so an interrupted or killed benchmark goes on with the same
    command. Printed is a table in Markdown.
    """
    import torch

    from serve.bench.training.bench import TrainingBench
    from serve.bench.training.cases import base_config, chosen_cases, judged_on

    stopped: list[int] = []
    with user_errors(ValueError, OSError, RuntimeError), _collected(stopped):
        check_outputs(json_out, folders=[out])
        if threads:
            torch.set_num_threads(threads)
        bench = TrainingBench(
            out,
            base_config(data, epochs=epochs, images=images, threads=threads),
            cases=chosen_cases(part, case),
            num_seeds=seeds,
            judged_on=judged_on(judge, part, case),
            tell=lambda text: typer.echo(text, err=True),
            should_stop=lambda: bool(stopped),
        )
        rows = bench.run()
        if not stopped:
            rows.append(bench.step_cost())
        write_rows(rows, json_out, bench.table())
    if stopped:
        raise typer.Exit(130)


@contextmanager
def _collected(stopped: list[int]) -> Generator[None]:
    """Note interrupts instead of raising in the middle of a step; the second one raises."""

    def note(number: int, _frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
