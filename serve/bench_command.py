"""`supernet bench`: the project's benchmarks. A subcommand imports what it needs when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve.bench_training_command import bench_training

bench_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run a benchmark; rows of figure, value, unit and detail.",
)

PROFILES = Path(__file__).parents[1] / "profiles"


@bench_app.callback()
def _group() -> None:  # keeps `policies` a subcommand while it is the only one
    """Run a benchmark; rows of figure, value, unit and detail."""


@bench_app.command("policies")
def policies(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Longer traces and all tiny instances: hours.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: bars, bursty, ramp, faults, maf, tiny, speed.",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core.")
    ] = None,
    profiles: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the published profiles.")
    ] = PROFILES,
) -> None:
    """Reproduce SuperServe's tables in the simulator, and hold every policy against ours."""
    from traces.bench_policies import FULL, QUICK, Bench, summary
    from traces.cli import user_errors
    from traces.files import replacing

    with user_errors():
        bench = Bench(
            profiles,
            FULL if full else QUICK,
            processes=processes,
            tell=lambda text: typer.echo(text, err=True),
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        text = json.dumps(rows, indent=1, allow_nan=False) + "\n"
        if json_out == "-":
            sys.stdout.write(text)
            return
        if json_out is not None:
            with replacing(Path(json_out)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        typer.echo(summary(rows))


bench_app.command("training")(bench_training)
