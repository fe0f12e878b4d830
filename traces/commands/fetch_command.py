"""The verb `trace fetch`: a public trace, downloaded, checked and ready to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slackfit.plain_console import plain_console


def trace_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which trace; 'list' names them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the file.")] = Path(
        "data"
    ),
    url: Annotated[
        str | None, typer.Option(help="Another place to get it from, a mirror of yours.")
    ] = None,
) -> None:
    """Download a public trace, going on where an earlier download broke off, and check it."""
    from traces.commands.output import trace_errors

    with trace_errors():
        from traces.sources.fetch import ORIGINALS, fetch, original

        if name == "list":
            for known, what in ORIGINALS.items():
                typer.echo(f"{known:20} {what.licence:22} {what.url}")
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        what = original(name)
        console = plain_console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(name, total=None)
            path, digest = fetch(
                what,
                out,
                url=url,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        is_known = "as published" if what.sha256 else "noted beside it; none is published"
        typer.echo(f"{path}: SHA-256 {digest} ({is_known}); {what.licence}")
        if what.note:
            typer.echo(what.note)
        typer.echo(f"read it with: supernet trace info '{what.spec.format(path=path)}'")
