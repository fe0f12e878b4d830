"""`supernet bench`: the project's benchmarks. A subcommand imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.bench.rows import write_rows
from serve.bench.serving.command import bench_serving
from serve.bench.training.command import bench_training
from slackfit.output_files import check_outputs

bench_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run a benchmark; rows of figure, value, unit and detail.",
)

PROFILES = Path(__file__).parents[2] / "profiles"


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
            help="Only these: bars, bursty, ramp, faults, maf, tiny, speed, twin, plan.",
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
    from serve.bench.policies.bench import FULL, QUICK, PoliciesBench, summary
    from traces.commands.output import trace_errors

    with trace_errors(ValueError):
        check_outputs(json_out)
        bench = PoliciesBench(
            profiles,
            FULL if full else QUICK,
            processes=processes,
            tell=lambda text: typer.echo(text, err=True),
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        write_rows(rows, json_out, summary(rows))


@bench_app.command("actuation")
def actuation(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Two threads as well, and the start of 100 subnets.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: graph, int8, switch, residency, memory, startup, busy.",
        ),
    ] = None,
) -> None:
    """Measure compiled subnets: against static exports, switching, residency, memory, starting."""
    from serve.bench.actuation.bench import ActuationBench
    from slackfit.user_errors import user_errors

    with user_errors(ValueError, ImportError, OSError):
        check_outputs(json_out)
        bench = ActuationBench(full=full, tell=lambda text: typer.echo(text, err=True))
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        lines = (f"{row['value']:12.4f} {row['unit']:6} {row['figure']}" for row in rows)
        write_rows(rows, json_out, "\n".join(lines))


bench_app.command("training")(bench_training)
bench_app.command("serving")(bench_serving)
