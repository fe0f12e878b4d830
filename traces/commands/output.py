"""How every verb of traces ends: which errors are its user's, and what a run of reports writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import typer

from slackfit.output_files import write_each, write_text
from slackfit.plain_console import plain_console
from slackfit.profile import ProfileError
from slackfit.user_errors import user_errors
from traces.trace import TraceError


def trace_errors(*more: type[Exception]) -> AbstractContextManager[None]:
    """Return `user_errors` of what reading profiles, traces and files can raise, and of `more`."""
    return user_errors(TraceError, ProfileError, OSError, *more)


def finish(
    reports: Sequence[Mapping[str, Any]], *, json_out: str | None, html_out: Path | None, title: str
) -> None:
    """Write what was asked for and print the table, on stderr when stdout carries the JSON."""

    from traces.report.report import report_json, write_report_html
    from traces.report.table import report_table

    console = plain_console(stderr=json_out == "-", width=None if sys.stdout.isatty() else 140)
    console.print(report_table(reports))
    write_each(
        lambda: None if json_out is None else write_text(json_out, report_json(reports)),
        lambda: None if html_out is None else write_report_html(html_out, reports, title=title),
    )
    if html_out is not None:
        typer.echo(f"report: {html_out}", err=True)
