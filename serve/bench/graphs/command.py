"""`supernet bench graphs`: options; the work is in `bench.py`, imported when it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from serve.bench.rows import write_rows
from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors


def bench_graphs(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All seeds of trainings, more rounds: hours.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: speed, sizes, peers, work, teacher, subnets, distillation; and "
            "settings, the search that chose how subnets are trained, which no run makes unasked.",
        ),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Train on these alone: cora, citeseer, heterophilous.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where trainings and the large graph are kept, to go on from.")
    ] = Path("runs/bench_graphs"),
    nodes: Annotated[
        int | None, typer.Option(min=1000, help="Of the large graph; edges are eight times it.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Of trainings; default 2 to 5, full 5 to 50.")
    ] = None,
) -> None:
    """Measure nodes as queries: time, predicted work, accuracies, layer-pair distillation."""
    import torch

    from serve.bench.graphs.bench import FULL, QUICK, GraphsBench

    size = FULL if full else QUICK
    if nodes is not None:
        size = replace(size, num_nodes=nodes, num_edges=8 * nodes)
    if graph is not None:
        size = replace(size, graphs=_names(graph))
    if seeds is not None:
        size = replace(size, teacher_seeds=seeds, subnet_seeds=seeds)
        size = replace(size, student_seeds=seeds, settings_seeds=seeds)
    torch.set_num_threads(1)
    with user_errors(ValueError, OSError, RuntimeError):
        check_outputs(json_out, folders=[out])
        bench = GraphsBench(out, size, tell=lambda text: typer.echo(text, err=True))
        rows = bench.run(None if part is None else _names(part))
        lines = (f"{row['value']:12.4f} {row['unit']:9} {row['figure']}" for row in rows)
        write_rows(rows, json_out, "\n".join(lines))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
