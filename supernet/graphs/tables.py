"""Rows of numbers in text files, plain or gzip, with the row of what is wrong."""

from __future__ import annotations

import gzip
import zlib
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np

from supernet.graphs.graph_store import GraphDataError

_ROWS_AT_ONCE = 200_000
_Rows = list[tuple[int, list[str]]]  # where each stands in the file, and its cells


def read_numbers(path: Path, *, columns: int | None, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, columns), int64 or float32, and the number of each in the file (n,).

    Without `columns` there are as many as the first row of numbers has. Rows that are empty or
    begin with `#` are passed over, and a first one of words. Raises GraphDataError naming file and
    row for another number of columns, or what is no number.
    """
    dtype = np.int64 if whole else np.float32
    parts: list[np.ndarray] = []
    numbers = [np.empty(0, np.int64)]
    first, may_be_words = 1, True
    with _open_text(path) as file:
        try:
            while lines := list(islice(file, _ROWS_AT_ONCE)):
                rows = _split(lines, first)
                first += len(lines)
                if may_be_words and rows:
                    rows = rows if _is_number(rows[0][1][0]) else rows[1:]
                    may_be_words = False
                if columns is None and rows:
                    columns = len(rows[0][1])
                if rows:
                    parts.append(_parsed(path, rows, columns, dtype))
                    numbers.append(np.array([number for number, _ in rows], dtype=np.int64))
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise GraphDataError(f"{path}: not a text file ({error})") from None
    parts = parts or [np.empty((0, columns or 0), dtype)]
    return np.concatenate(parts), np.concatenate(numbers)


def _open_text(path: Path) -> IO[str]:
    """Open a text file, compressed or not. A mark of the byte order is no part of the first row."""
    try:
        if path.suffix == ".gz":
            return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8-sig"))
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise GraphDataError(f"{path}: not readable ({error.strerror})") from None


def _split(lines: list[str], first: int) -> _Rows:
    rows = enumerate((line.replace(",", " ").split() for line in lines), start=first)
    return [(number, cells) for number, cells in rows if cells and not cells[0].startswith("#")]


def _parsed(path: Path, rows: _Rows, columns: int | None, dtype: type) -> np.ndarray:
    for number, cells in rows:
        if len(cells) != columns:
            raise GraphDataError(f"{path}, row {number}: {len(cells)} columns, expected {columns}")
    try:
        with np.errstate(over="ignore"):  # to infinity, which is told by who reads features
            return np.array([cells for _, cells in rows], dtype=dtype)
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
