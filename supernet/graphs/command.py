"""`supernet graph`: graphs in, and what is in a graph folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer

from supernet.graphs.graph_store import GraphDataError, GraphStore, open_graph

graph_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a graph folder, and look at one.",
)
_KINDS = "edges, planetoid, ogb"
_ERRORS = (GraphDataError, OSError, MemoryError)


@graph_app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="An edge list, an .npz archive, an OGB folder.")],
    out: Annotated[Path, typer.Option(help="The graph folder to write.")],
    kind: Annotated[
        str | None, typer.Option("--from", help=f"{_KINDS}; default: as the source looks.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="For edges: features, .npy (nodes, F) or rows of text.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="For edges: a label per node, -1 for none.")
    ] = None,
    directed: Annotated[
        bool, typer.Option("--directed", help="Messages run from source to target only.")
    ] = False,
) -> None:
    """Make a graph folder: neighbour lists, features and labels in files that are memory-mapped."""
    from supernet.graphs.convert import read_edge_list, read_ogb, read_planetoid

    try:
        chosen = kind or _looks_like(source)
        _check_options(chosen, features=features, labels=labels, directed=directed)
        if chosen == "edges":
            graph = read_edge_list(
                source, features=features, labels=labels, undirected=not directed
            )
        elif chosen == "planetoid":
            graph = read_planetoid(source)
        elif chosen == "ogb":
            graph = read_ogb(source, undirected=not directed)
        else:
            raise GraphDataError(f"--from is {chosen!r}, allowed {_KINDS}")
        _print(graph.save(out), out)
    except _ERRORS as error:
        _fail(error)


@graph_app.command("generate")
def generate(
    out: Annotated[Path, typer.Option(help="The graph folder to write.")],
    kind: Annotated[
        str, typer.Argument(help="power-law (1 M nodes, 8 M edges) or heterophilous (2,400).")
    ] = "power-law",
    nodes: Annotated[
        int, typer.Option(min=10, max=2**31, help="Of power-law: how many nodes.")
    ] = 1_000_000,
    edges: Annotated[int, typer.Option(min=1, help="Of power-law: how many edges.")] = 8_000_000,
    seed: Annotated[int, typer.Option(min=0, help="What is drawn.")] = 0,
) -> None:
    """Make the graphs that the benchmarks measure on."""
    from supernet.graphs.generated import heterophilous, power_law

    try:
        if kind == "power-law":
            graph = power_law(num_nodes=nodes, num_edges=edges, seed=seed)
        elif kind == "heterophilous":
            graph = heterophilous(seed=seed)
        else:
            raise GraphDataError(f"KIND is {kind!r}, allowed power-law, heterophilous")
        _print(graph.save(out), out)
    except _ERRORS as error:
        _fail(error)


@graph_app.command("info")
def info(
    folder: Annotated[Path, typer.Argument(help="A graph folder.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the sizes of a graph and how its degrees are spread."""
    try:
        graph = open_graph(folder)
    except _ERRORS as error:
        _fail(error)
    if json_:
        sys.stdout.write(json.dumps(_figures(graph)) + "\n")
    else:
        _print(graph, folder)


def _figures(graph: GraphStore) -> dict[str, object]:
    p50, p99 = np.percentile(graph.degrees, [50, 99])
    return {
        "name": graph.name,
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "features": graph.num_features,
        "classes": len(graph.classes),
        "degree": {"p50": float(p50), "p99": float(p99), "max": int(graph.degrees.max())},
        "splits": {name: len(ids) for name, ids in graph.splits.items()},
        "source": graph.source,
    }


def _check_options(
    kind: str, *, features: Path | None, labels: Path | None, directed: bool
) -> None:
    """Raise GraphDataError for an option that a source of that kind has no use for."""
    given = {
        "--features": features is not None and kind in ("planetoid", "ogb"),
        "--labels": labels is not None and kind in ("planetoid", "ogb"),
        "--directed": directed and kind == "planetoid",
    }
    unused = [name for name, is_unused in given.items() if is_unused]
    if unused:
        raise GraphDataError(f"{', '.join(unused)}: not for a source of kind {kind}")


def _looks_like(source: Path) -> str:
    if source.is_dir():
        return "ogb"
    return "planetoid" if source.suffix == ".npz" else "edges"


def _print(graph: GraphStore, folder: Path) -> None:
    figures = _figures(graph)
    typer.echo(
        f"{folder}: {graph.name}, {graph.num_nodes:,} nodes, {graph.num_edges:,} neighbours, "
        f"{graph.num_features} features, {len(graph.classes)} classes; degree {figures['degree']}",
    )


def _fail(error: Exception) -> NoReturn:
    print(f"error: {str(error) or 'more than memory holds'}", file=sys.stderr)
    raise SystemExit(2) from None
