"""How every verb ends: one clear message for what a user got wrong, files whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that the user can mend into one message and exit code 2."""
    from slackfit.profile import ProfileError
    from traces.trace import TraceError

    try:
        yield
    except (TraceError, ProfileError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def finish(
    reports: Sequence[Mapping[str, Any]], *, json_out: str | None, html_out: Path | None, title: str
) -> None:
    """Write what was asked for and print the table, on stderr when stdout carries the JSON."""
    from rich.console import Console

    from traces.report.report import report_json, write_report_html
    from traces.report.table import report_table

    if html_out is not None:
        write_report_html(html_out, reports, title=title)
    if json_out is not None:
        write_text(json_out, report_json(reports))
    console = Console(stderr=json_out == "-", width=None if sys.stdout.isatty() else 140)
    console.print(report_table(reports))
    if html_out is not None:
        typer.echo(f"report: {html_out}", err=True)


def write_text(out: str, text: str) -> None:
    """Write to a file, whole or not at all, or to stdout for `-`."""
    from traces.files import replacing

    if out == "-":
        sys.stdout.write(text)
        return
    with replacing(Path(out)) as temporary:
        temporary.write_text(text, encoding="utf-8")
