"""Rows of numbers in text files, plain or gzip, with the row of what is wrong."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np

from supernet.graphs.graph_store import GraphDataError

_ROWS_AT_ONCE = 200_000


def open_text(path: Path) -> IO[str]:
    """Open a text file, compressed or not. Raises GraphDataError when there is none."""
    try:
        if path.suffix == ".gz":
            return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8"))
        return path.open(encoding="utf-8")
    except OSError as error:
        raise GraphDataError(f"{path}: not readable ({error.strerror})") from None


def read_numbers(path: Path, *, columns: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, columns), int64 or float32, and the number of each in the file (n,).

    Rows that are empty or begin with `#` are passed over, and a first one of words. Raises
    GraphDataError naming file and row for another number of columns, or what is no number.
    """
    dtype = np.int64 if whole else np.float32
    parts, numbers = [np.empty((0, columns), dtype)], [np.empty(0, np.int64)]
    first = 1
    with open_text(path) as file:
        try:
            while lines := list(islice(file, _ROWS_AT_ONCE)):
                rows = _split(lines, first)
                if first == 1 and rows and not _is_number(rows[0][1][0]):
                    rows = rows[1:]
                parts.append(_parsed(path, rows, columns, dtype))
                numbers.append(np.array([number for number, _ in rows], dtype=np.int64))
                first += len(lines)
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise GraphDataError(f"{path}: not a text file ({error})") from None
    return np.concatenate(parts), np.concatenate(numbers)


def _split(lines: list[str], first: int) -> list[tuple[int, list[str]]]:
    rows = enumerate((line.replace(",", " ").split() for line in lines), start=first)
    return [(number, cells) for number, cells in rows if cells and not cells[0].startswith("#")]


def _parsed(path: Path, rows: list[tuple[int, list[str]]], columns: int, dtype: type) -> np.ndarray:
    for number, cells in rows:
        if len(cells) != columns:
            raise GraphDataError(f"{path}, row {number}: {len(cells)} columns, expected {columns}")
    try:
        return np.array([cells for _, cells in rows], dtype=dtype).reshape(-1, columns)
    except (ValueError, OverflowError):
        for number, cells in rows:
            for cell in cells:
                if not _is_number(cell) or (dtype is np.int64 and not _is_whole(cell)):
                    kind = "a whole number" if dtype is np.int64 else "a number"
                    raise GraphDataError(f"{path}, row {number}: {cell!r} is not {kind}") from None
        raise


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_whole(cell: str) -> bool:
    try:
        return -(2**63) <= int(cell) < 2**63
    except ValueError:
        return False
