"""Named columns of someone else's table: CSV, JSON lines or Parquet, plain or gzip.

Text formats are read as a stream, eight bytes a value, so that a file may be larger than memory;
texts such as function hashes become numbers with a list of names. An error names the file, the
line, the column, what stands there and what is expected.
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.files import open_text
from traces.trace import FloatArray, IntArray, TraceError

KINDS = {
    "number": "a finite number",
    "time": "a time such as 2023-11-16 18:17:03.97",
    "text": "a text",
}


class Texts(NamedTuple):
    """A column of texts: `names[codes[i]]` is the text of row i; names in order of appearance."""

    codes: IntArray
    names: tuple[str, ...]


class Table(NamedTuple):
    """The columns asked for: numbers and times (s since 1970) as float64, and texts."""

    numbers: dict[str, FloatArray]
    texts: dict[str, Texts]

    @property
    def num_rows(self) -> int:
        """Rows of the table; every column has as many."""
        columns = [c.size for c in self.numbers.values()]
        columns += [t.codes.size for t in self.texts.values()]
        return columns[0]


def read_table(path: Path | str, kinds: Mapping[str, str], *, delimiter: str = ",") -> Table:
    """Read columns by name; `kinds` maps each to `number`, `time` (ISO 8601) or `text`.

    The suffix says the format: `.parquet`, `.jsonl` or `.json` (an object a line), else CSV.

    Raises:
        TraceError: names file, line and column, and what is expected there.
    """
    path = Path(path)
    bare = path.name.removesuffix(".gz")
    try:
        if bare.endswith(".parquet"):
            table = _read_parquet(path, kinds)
        else:
            is_json = bare.endswith((".jsonl", ".json"))
            with open_text(path) as stream:
                lines = _json_rows(path, stream, kinds) if is_json else None
                table = _gather(path, lines or _csv_rows(path, stream, kinds, delimiter), kinds)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except (OSError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    if table.num_rows == 0:
        raise TraceError(f"{path}: holds no rows; expected at least one with {', '.join(kinds)}")
    return table


_Row = tuple[int, list[Any]]  # line number, values in the order of `kinds`


def _csv_rows(path: Path, stream: Any, kinds: Mapping[str, str], delimiter: str) -> Iterator[_Row]:
    reader = csv.reader((line for line in stream if line[0] != "#"), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    places = [_place(path, header, name) for name in kinds]
    for row in reader:
        if len(row) == len(header):
            yield reader.line_num, [row[i] for i in places]
        elif row:
            raise TraceError(
                f"{path}, line {reader.line_num}: {len(row)} values, expected {len(header)}: "
                f"{', '.join(header)[:120]}"
            )


def _place(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        raise TraceError(
            f"{path}, line 1: no column {name!r}; the columns are {', '.join(header)[:200] or '-'}"
        )
    return header.index(name)


def _json_rows(path: Path, stream: Any, kinds: Mapping[str, str]) -> Iterator[_Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise TraceError(f"{path}, line {number}: expected an object a line, got {line[:40]!r}")
        for name in kinds:
            if name not in fields:
                raise TraceError(
                    f"{path}, line {number}: no field {name!r}; there are {', '.join(fields)[:200]}"
                )
        yield number, [fields[name] for name in kinds]


def _gather(path: Path, rows: Iterator[_Row], kinds: Mapping[str, str]) -> Table:
    codes: dict[str, dict[str, int]] = {n: {} for n, kind in kinds.items() if kind == "text"}
    columns = [array("q" if name in codes else "d") for name in kinds]
    converts = [_converter(kind, codes.get(name)) for name, kind in kinds.items()]
    for line_number, values in rows:
        for column, convert, value, name in zip(columns, converts, values, kinds, strict=True):
            try:
                column.append(convert(value))
            except (ValueError, TypeError, OverflowError):
                raise TraceError(
                    f"{path}, line {line_number}, column {name}: {str(value)[:40]!r} is not "
                    f"{KINDS[kinds[name]]}"
                ) from None
    arrays = {
        name: np.frombuffer(c, c.typecode) if c else np.empty(0, c.typecode)
        for name, c in zip(kinds, columns, strict=True)
    }
    return Table(
        {n: a for n, a in arrays.items() if n not in codes},
        {n: Texts(arrays[n], tuple(names)) for n, names in codes.items()},
    )


def _converter(kind: str, codes: dict[str, int] | None) -> Callable[[Any], float]:
    if codes is not None:
        return lambda text: codes.setdefault(str(text), len(codes))
    return seconds_since_1970 if kind == "time" else _finite


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def seconds_since_1970(text: str) -> float:
    """Return an ISO 8601 time in seconds since 1970, UTC where it names no zone.

    >>> seconds_since_1970("1970-01-01 00:01:00.5")
    60.5
    """
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _read_parquet(path: Path, kinds: Mapping[str, str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for name in kinds:
                _place(path, list(file.schema_arrow.names), name)
            loaded = file.read(columns=list(kinds))
    except pa.ArrowInvalid as error:
        raise TraceError(f"{path}: not a Parquet file ({error})") from None
    numbers: dict[str, FloatArray] = {}
    texts: dict[str, Texts] = {}
    for name, kind in kinds.items():
        column = loaded.column(name)
        if kind == "text":
            names, codes = np.unique(np.array(column.to_pylist(), dtype=str), return_inverse=True)
            texts[name] = Texts(codes.astype(np.int64), tuple(names.tolist()))
            continue
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ns")).cast(pa.int64())
            values = column.to_numpy().astype(np.float64) * 1e-9
        elif kind == "number" and (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        ):
            values = column.to_numpy().astype(np.float64)
        else:
            raise TraceError(
                f"{path}, column {name}: holds {column.type}, expected {KINDS[kind]} a row"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise TraceError(f"{path}, row {bad[0] + 1}, column {name}: is not {KINDS[kind]}")
        numbers[name] = values
    return Table(numbers, texts)
