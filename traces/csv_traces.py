"""Trace files in CSV: comment lines with what belongs to the whole, a header, one line a query.

Read as a stream, eight bytes a value. An empty cell is an unknown value, where one may be.
"""

from __future__ import annotations

import csv
import gzip
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from traces.file_header import HEADER_KEYS, WHAT_A_LINE_IS, checked_names, decoded, header_of
from traces.places import Places
from traces.text_files import open_text
from traces.texts import Texts
from traces.trace import Trace
from traces.trace_columns import OPTIONAL_COLUMNS, UNKNOWN_COUNT
from traces.trace_error import TraceError


def read_csv(path: Path) -> tuple[dict[str, Any], dict[str, Any], Places]:
    """Return columns, header and lines of a CSV trace. Raises TraceError with file and line."""
    places = Places()
    with open_text(path) as stream:
        header, num_before, names = _read_head(path, stream)
        readings = [_Reading(name) for name in names]
        reader = csv.reader(stream)
        try:
            for row in reader:
                if row and any(row):
                    line = num_before + reader.line_num
                    _add(readings, row, f"{path}, line {line}")
                    places.add(line)
        except csv.Error as error:
            line = num_before + reader.line_num
            raise TraceError(f"{path}, line {line}: not CSV ({error})") from None
    return {r.name: r.column() for r in readings}, header, places


def write_csv(path: Path, trace: Trace, is_gzip: bool) -> None:
    """Write a trace; the same trace gives the same bytes."""
    columns = {"arrival_s": trace.arrival_s, **trace.columns()}
    cells = [_cells(name, column) for name, column in columns.items()]
    # A fixed time stamp and no file name: the same trace gives the same bytes.
    with path.open("wb") as raw:
        stream = gzip.GzipFile("", "wb", 6, raw, mtime=0) if is_gzip else raw
        for key, value in header_of(trace).items():
            stream.write(f"# {key}: {value}\n".encode())
        stream.write((",".join(columns) + "\n").encode())
        for row in zip(*cells, strict=True):
            stream.write((",".join(row) + "\n").encode())
        if is_gzip:
            stream.close()


class _Reading:
    """One column while it is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        known = OPTIONAL_COLUMNS.get(name)
        self._kind = known.kind if known else "number"
        self._codes: dict[str, int] = {}
        self._values = array("d" if self._kind == "number" else "q")
        unknown = np.nan if self._kind == "number" else UNKNOWN_COUNT
        self._unknown = unknown if known and known.may_be_unknown else None
        self._convert: Callable[[str], float] = {
            "number": float,
            "integer": int,
            "text": lambda text: self._codes.setdefault(text, len(self._codes)),
        }[self._kind]

    def add(self, cell: str) -> None:
        if self._unknown is not None and self._kind != "text" and not cell.strip():
            self._values.append(self._unknown)  # type: ignore[arg-type] # the kind's own
        else:
            self._values.append(self._convert(cell))  # type: ignore[arg-type] # the kind's own

    def column(self) -> Any:
        values = self._values
        numbers = np.frombuffer(values, values.typecode) if values else np.empty(0, values.typecode)
        return Texts(numbers, tuple(self._codes)) if self._kind == "text" else numbers


def _add(readings: list[_Reading], row: list[str], where: str) -> None:
    expected = ", ".join(reading.name for reading in readings)
    if len(row) != len(readings):
        raise TraceError(f"{where}: {len(row)} values, expected {len(readings)}: {expected}")
    try:
        for reading, cell in zip(readings, row, strict=True):
            reading.add(cell)
    except (ValueError, OverflowError):
        raise TraceError(
            f"{where}: {','.join(row)[:80]!r} is not a row of numbers; expected {expected}"
        ) from None


def _read_head(path: Path, stream: TextIO) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """Return what the comment lines say, the number of lines read, and the column names."""
    header: dict[str, Any] = {}
    for line_number, line in enumerate(iter(stream.readline, ""), start=1):
        text = line.strip()
        where = f"{path}, line {line_number}"
        if text and not text.startswith("#"):
            names = tuple(name.strip().strip('"') for name in text.split(","))
            return header, line_number, checked_names(names, where)
        key, _, value = text[1:].partition(":")
        if key.strip() in HEADER_KEYS:
            header[key.strip()] = decoded(value, where)
    raise TraceError(f"{path}: is empty; expected a header line, then {WHAT_A_LINE_IS}")


def _cells(name: str, column: Any) -> list[str]:
    """Return a column's cells; numbers are written so that they read back exactly."""
    if isinstance(column, Texts):
        shown = [_quoted(text) for text in column.names]
        return [shown[code] for code in column.codes.tolist()]
    may_be_unknown = name in OPTIONAL_COLUMNS and OPTIONAL_COLUMNS[name].may_be_unknown
    unknown = column == UNKNOWN_COUNT if column.dtype == np.int64 else np.isnan(column)
    if not (may_be_unknown and unknown.any()):
        return list(map(repr, column.tolist()))
    pairs = zip(column.tolist(), unknown.tolist(), strict=True)
    return ["" if is_unknown else repr(value) for value, is_unknown in pairs]


def _quoted(text: str) -> str:
    if any(c in text for c in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text
