"""Which rows of a log are kept: `COLUMN=VALUE|VALUE & COLUMN!=VALUE`, compared as texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.sources.columns import Table
from traces.trace import TraceError


class Condition(NamedTuple):
    """A column's text is one of `values`, or is none of them."""

    column: str
    is_wanted: bool
    values: tuple[str, ...]


def conditions(where: str | None) -> list[Condition]:
    """Read a `where`; all of its conditions have to hold.

    >>> conditions("kind=a|b & code!=500")[1]
    Condition(column='code', is_wanted=False, values=('500',))

    Raises:
        TraceError: a condition is malformed.
    """
    found: list[Condition] = []
    for part in [] if where is None else where.split("&"):
        match = re.fullmatch(r"\s*([^=!]+?)\s*(!?=)\s*(.*?)\s*", part)
        if match is None:
            raise TraceError(
                f"where: {part.strip()!r} is not COLUMN=VALUE or COLUMN!=VALUE; several values "
                "stand between |, several conditions between &"
            )
        values = tuple(value.strip() for value in match[3].split("|"))
        found.append(Condition(match[1], match[2] == "=", values))
    return found


def where_columns(where: str | None) -> dict[str, str]:
    """Return the columns that a `where` reads, as `read_table` takes them."""
    return {condition.column: "text" for condition in conditions(where)}


def rows_where(path: Path | str, table: Table, where: str | None) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows that are kept. Raises TraceError when none is."""
    keep = np.ones(table.num_rows, dtype=np.bool_)
    for column, is_wanted, values in conditions(where):
        texts = table.texts.get(column)
        if texts is None:
            raise TraceError(f"where: column {column!r} is read as numbers, so it has no texts")
        is_one = np.array([name.strip() in values for name in texts.names], dtype=np.bool_)
        keep &= is_one[texts.codes] == is_wanted
        if not keep.any():
            some = ", ".join(repr(name) for name in texts.names[:10])
            raise TraceError(f"{path}: no row where {where}; column {column} holds {some}")
    return keep
