"""Where the rows of a benchmark go: a file, or stdout, with a text for people beside it."""

from __future__ import annotations

import json
from typing import Any

import typer

from slackfit.output_files import write_text


def write_rows(rows: list[dict[str, Any]], json_out: str | None, text_for_people: str) -> None:
    """Write the rows as JSON to a file, or instead of the text to stdout (`-`)."""
    text = json.dumps(rows, indent=1, allow_nan=False) + "\n"
    if json_out is not None:
        write_text(json_out, text)
    if json_out != "-":
        typer.echo(text_for_people)
