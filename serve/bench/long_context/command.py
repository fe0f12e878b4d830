"""`supernet bench long-context`: the options; `bench.py` is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.bench.rows import write_rows
from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors

_HARDWARE = Path(__file__).parents[3] / "profiles" / "hardware"


def bench_long_context(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: exact, kvp, spp, break_even, failure, simulated.",
        ),
    ] = None,
    hardware: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of hardware profiles, for `simulated`.")
    ] = _HARDWARE,
    context: Annotated[
        int, typer.Option(min=1024, help="Tokens of context at which attention is measured.")
    ] = 65_536,
    repeats: Annotated[int, typer.Option(min=1, help="The best of so many.")] = 5,
    device: Annotated[
        str, typer.Option(help="Of the workers, cpu or cuda: a device each over NCCL, else shared.")
    ] = "cpu",
) -> None:
    """Measure one context over two workers, one thread each, and simulate larger grids."""
    from serve.bench.long_context.bench import LongContextBench

    with user_errors(ValueError, OSError, RuntimeError):
        check_outputs(json_out)
        bench = LongContextBench(
            hardware,
            context=context,
            repeats=repeats,
            device=device,
            tell=lambda text: typer.echo(text, err=True),
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        lines = (f"{row['value']:14.4f} {row['unit']:8} {row['figure']}" for row in rows)
        write_rows(rows, json_out, "\n".join(lines))
