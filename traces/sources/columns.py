"""Named columns of someone else's table: CSV, JSON lines or Parquet, plain or gzip.

Text formats are read as a stream, eight bytes a value, so that a file may be larger than memory;
texts such as function hashes become numbers with a list of names. An error names the file, the
line, the column, what stands there and what is expected.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.places import Places
from traces.sources.cells import Column, place_of
from traces.sources.parquet_columns import read_parquet_columns
from traces.text_files import open_text
from traces.texts import Texts
from traces.trace import FloatArray, IntArray, TraceError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


class Table(NamedTuple):
    """The columns asked for: numbers and times (s since 1970) as float64, and texts.

    `in_seconds` are the columns whose type says its own unit, such as timestamps of Parquet: they
    are in seconds already, whatever unit a log is said to have.
    """

    numbers: dict[str, FloatArray]
    texts: dict[str, Texts]
    in_seconds: frozenset[str] = frozenset()
    places: Places = Places()  # empty: rows, as Parquet has them

    @property
    def num_rows(self) -> int:
        """Rows of the table; every column has as many."""
        columns = [c.size for c in self.numbers.values()]
        columns += [len(t) for t in self.texts.values()]
        return columns[0]

    def seconds(self, name: str, unit_s: float) -> FloatArray:
        """Return a column of times or lengths in seconds; the unit is for plain numbers."""
        return self.numbers[name] * (1.0 if name in self.in_seconds else unit_s)

    def has(self, name: str) -> bool:
        """Say whether an optional column is there."""
        return name in self.numbers or name in self.texts

    def counts(self, name: str) -> IntArray:
        """Return a column of the kind `count` as whole numbers."""
        return self.numbers[name].astype(np.int64)

    def column(self, name: str, kind: str) -> FloatArray | IntArray | Texts:
        """Return a column as its kind says: texts, whole numbers for `count`, else numbers."""
        if kind == "text":
            return self.texts[name]
        return self.counts(name) if kind == "count" else self.numbers[name]

    def refuse(self, path: Path | str, is_bad: Any, column: str, wanted: str) -> None:
        """Refuse the first row that is bad. Raises TraceError with file, line and column."""
        bad = np.flatnonzero(is_bad)
        if not bad.size:
            return
        row = int(bad[0])
        texts = self.texts.get(column)
        value = f"{self.numbers[column][row]:.12g}" if texts is None else repr(texts.tolist()[row])
        raise TraceError(
            f"{path}, {self.places.of(row)}, column {column}: {value}, expected {wanted}"
        )


def read_table(
    path: Path | str,
    kinds: Mapping[str, str],
    *,
    optional: Mapping[str, str] | None = None,
    delimiter: str = ",",
) -> Table:
    """Read columns by name; `kinds` maps each to one of `cells.KINDS`.

    `optional` columns are read where they are there; of JSON lines single fields may be missing.
    The suffix says the format: `.parquet`, `.jsonl` or `.json` (an object a line), else CSV.

    Raises:
        TraceError: names file, line and column, and what is expected there.
    """
    path = Path(path)
    more = dict(optional or {})
    bare = path.name.lower().removesuffix(".gz")
    try:
        if bare.endswith(".parquet"):
            table = Table(*read_parquet_columns(path, kinds, more))
        elif bare.endswith(JSON_SUFFIXES):
            table = _read_json(path, kinds, more)
        else:
            table = _read_csv(path, kinds, more, delimiter)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    if table.num_rows == 0:
        raise TraceError(f"{path}: holds no rows; expected at least one with {', '.join(kinds)}")
    return table


class _Lines:
    """The lines of a stream without its comments, with the number of the last one read.

    A comment stands between rows: a line inside a quoted cell may begin like one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_inside_row = False
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self.number += 1
            if self._is_inside_row or line[0] != "#":
                self._is_inside_row = True
                yield line

    def rows(self, delimiter: str) -> Iterator[list[str]]:
        """Yield the rows as cells. Raises csv.Error."""
        for row in csv.reader(iter(self), delimiter=delimiter, skipinitialspace=True):
            self._is_inside_row = False  # the reader takes no line beyond the row's last
            yield row


def _read_csv(
    path: Path, kinds: Mapping[str, str], optional: Mapping[str, str], delimiter: str
) -> Table:
    with open_text(path) as stream:
        lines = _Lines(stream)
        rows = lines.rows(delimiter)
        try:
            header = [name.strip() for name in next(filter(None, rows), [])]
            wanted = {**kinds, **{n: k for n, k in optional.items() if n in header}}
            at = [place_of(path, header, name) for name in wanted]
            columns, places = [Column(name, kind) for name, kind in wanted.items()], Places()
            for row in rows:
                if not any(map(str.strip, row)):  # as a spreadsheet leaves them at the end
                    continue
                where = f"{path}, line {lines.number}"
                cells = _fitted(row, header, where)
                for column, i in zip(columns, at, strict=True):
                    column.add(cells[i], where)
                places.add(lines.number)
        except csv.Error as error:
            raise TraceError(f"{path}, line {lines.number}: not CSV ({error})") from None
    return _table(columns, places)


def _fitted(row: list[str], header: list[str], where: str) -> list[str]:
    """Return a row of the header's length; empty cells beyond it are left out."""
    while len(row) > len(header) and not row[-1].strip():
        row.pop()
    if len(row) != len(header):
        raise TraceError(
            f"{where}: {len(row)} values, expected {len(header)}: {', '.join(header)[:120]}"
        )
    return row


def _read_json(path: Path, kinds: Mapping[str, str], optional: Mapping[str, str]) -> Table:
    columns = [Column(name, kind) for name, kind in {**kinds, **optional}.items()]
    places = Places()
    seen: set[str] = set()
    with open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            fields = _fields(line, where)
            seen.update(name for name in optional if name in fields)
            for column in columns:
                if column.name in kinds and column.name not in fields:
                    raise TraceError(
                        f"{where}: no field {column.name!r}; there are {', '.join(fields)[:200]}"
                    )
                column.add(fields.get(column.name), where)
            places.add(number)
    return _table([c for c in columns if c.name in kinds or c.name in seen], places)


def _fields(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise TraceError(f"{where}: expected an object a line, got {line[:40]!r}")
    return fields


def _table(columns: list[Column], places: Places) -> Table:
    numbers = {c.name: c.numbers() for c in columns if c.kind != "text"}
    texts = {c.name: c.texts() for c in columns if c.kind == "text"}
    in_seconds = frozenset(c.name for c in columns if c.kind == "time")
    return Table(numbers, texts, in_seconds, places)
