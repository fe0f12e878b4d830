"""`Row`, what every benchmark measures: figure, value, unit, detail; and where rows go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slackfit.output_files import write_text

Row = dict[str, Any]
"""One measured figure: `figure` is its path, `value` a number of `unit`, `detail` how it came."""

Tell = Callable[[str], None]
"""Where a benchmark says what it is at, a line at a time."""


def row(
    figure: str,
    value: float,
    unit: str,
    detail: str | Mapping[str, Any],
    *,
    digits: int | None = 6,
) -> Row:
    """Return the row of one figure, its value rounded (`digits` None: to a whole number)."""
    rounded = round(float(value), digits)
    return {"figure": figure, "value": rounded, "unit": unit, "detail": detail}


def absent_row(figure: str, unit: str, why: str) -> Row:
    """Return the row of a figure that could not be measured: its value is None."""
    return {"figure": figure, "value": None, "unit": unit, "detail": why}


def rows_json(rows: Sequence[Row]) -> str:
    """Return the rows as the text of a JSON file. Raises ValueError for a value without one."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def write_rows(rows: Sequence[Row], json_out: str | None, text_for_people: str) -> None:
    """Write the rows as JSON to a file, or instead of the text to stdout (`-`)."""
    if json_out != "-":
        print(text_for_people)  # first: it is there whatever becomes of the file
    if json_out is not None:
        write_text(json_out, rows_json(rows))
