"""Where the rows of a benchmark go: a file, or stdout, with a text for people beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from traces.files import replacing


def write_rows(rows: list[dict[str, Any]], json_out: str | None, text_for_people: str) -> None:
    """Write the rows as JSON to a file, or instead of the text to stdout (`-`)."""
    text = json.dumps(rows, indent=1, allow_nan=False) + "\n"
    if json_out == "-":
        sys.stdout.write(text)
        return
    if json_out is not None:
        with replacing(Path(json_out)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    typer.echo(text_for_people)
