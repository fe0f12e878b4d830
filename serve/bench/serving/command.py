"""`supernet bench serving`: the options; `bench.py` is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.bench.rows import write_rows
from slackfit.output_files import OutputError, check_outputs
from slackfit.user_errors import user_errors


def bench_serving(
    json_out: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write the rows, and a picture beside them."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Longer runs, more rounds, a soak of an hour.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Of peers, static, overload, doors, routing, mixed, soak. Default: peers, "
            "overload, doors.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the supernet; default: the demo's, for static the published networks."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Samples to send; default: the data folder beside the checkpoint."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where cells are kept, to go on from.")] = Path(
        "runs/bench_serving"
    ),
    duration_s: Annotated[
        float | None,
        typer.Option(min=1, help="Length of the soak; default: 60 s, with --full an hour."),
    ] = None,
) -> None:
    """Measure this system against others' batching, static networks, beyond capacity, by door."""
    from serve.bench.serving.bench import ServingBench
    from serve.client import ClientError
    from serve.config import ServeConfigError
    from slackfit.profile import ProfileError
    from supernet import CheckpointError
    from traces.trace import TraceError

    bench, is_stopped = None, False
    kinds = (ServeConfigError, CheckpointError, ClientError, ProfileError, TraceError, OutputError)
    with user_errors(*kinds):
        check_outputs(json_out, folders=[out])
        try:
            bench = ServingBench(
                out,
                checkpoint=checkpoint,
                data=data,
                full=full,
                duration_s=duration_s,
                tell=lambda text: typer.echo(text, err=True),
            )
            bench.run(None if part is None else [name.strip() for name in part.split(",")])
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on where it was", err=True)
            is_stopped = True
    if bench is not None:
        with user_errors(OutputError):
            _write(bench.rows, bench.picture, json_out)
    if is_stopped:
        raise typer.Exit(130)


def _write(rows: list[dict], picture: dict, json_out: str | None) -> None:
    text = "\n".join(f"{r['figure']:<58} {r['value']:>12} {r['unit']}" for r in rows)
    write_rows(rows, json_out, text)
    if picture and json_out not in (None, "-"):
        from traces.report.plane_plot import save_planes

        save_planes(Path(json_out).with_suffix(".svg"), picture)
