"""Columns of a foreign Parquet file, whatever their types: numbers, times with a unit, texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from traces.memory import check_arrivals
from traces.sources.cells import (
    KINDS,
    count_or_unknown,
    finite,
    place_of,
    seconds_since_1970,
    shown,
    size_or_unknown,
)
from traces.texts import Texts
from traces.trace import FloatArray, TraceError

_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PARSERS: dict[str, Callable[[Any], float]] = {
    "number": finite,
    "time": seconds_since_1970,
    "count": count_or_unknown,
    "size": size_or_unknown,
}
_UNKNOWN = {"count": -1.0, "size": np.nan}


def read_parquet_columns(
    path: Path, kinds: Mapping[str, str], optional: Mapping[str, str]
) -> tuple[dict[str, FloatArray], dict[str, Texts], frozenset[str]]:
    """Return numbers, texts, and the names of the columns whose type says its unit.

    Raises:
        TraceError: names file, row and column, what stands there and what is expected.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers: dict[str, FloatArray] = {}
    texts: dict[str, Texts] = {}
    in_seconds: set[str] = set()
    try:
        with pq.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            wanted = {**kinds, **{n: k for n, k in optional.items() if n in header}}
            for name in wanted:
                place_of(path, header, name)
            check_arrivals(
                file.metadata.num_rows, f"cut {path} into parts", bytes_each=32 * len(wanted)
            )
            loaded = file.read(columns=list(wanted))
            for name, kind in wanted.items():
                column = loaded.column(name)
                if kind == "text":
                    texts[name] = _texts(path, name, column)
                else:
                    numbers[name], has_unit = _numbers(path, name, kind, column)
                    in_seconds.update({name} if has_unit else ())
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not a Parquet file that can be read ({error})") from None
    return numbers, texts, frozenset(in_seconds)


def _texts(path: Path, name: str, column: Any) -> Texts:
    """Return a column of texts, in order of appearance; a null is an empty text."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise TraceError(f"{path}, column {name}: holds {kind}, expected {KINDS['text']} a row")
    numbers: dict[str, int] = {}
    parts: list[Any] = [np.empty(0, np.int64)]
    for chunk in column.cast(pa.string()).chunks:
        encoded = chunk.dictionary_encode(null_encoding="encode")
        names = [text or "" for text in encoded.dictionary.to_pylist()]
        codes = np.array([numbers.setdefault(t, len(numbers)) for t in names], dtype=np.int64)
        parts.append(codes[encoded.indices.to_numpy(zero_copy_only=False)])
    return Texts(np.concatenate(parts), tuple(numbers))


def _numbers(path: Path, name: str, kind: str, column: Any) -> tuple[FloatArray, bool]:
    """Return a column's numbers, and whether they are seconds by its type."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_string(column.type) or types.is_large_string(column.type):
        return _parsed(path, name, kind, column), kind == "time"
    has_unit = types.is_timestamp(column.type) or types.is_duration(column.type)
    has_unit = has_unit or types.is_time(column.type)
    if has_unit and kind in ("number", "time"):
        plain = column.cast(pa.int32() if types.is_time32(column.type) else pa.int64())
        values = plain.cast(pa.float64(), safe=False).to_numpy() * _UNITS_S[column.type.unit]
    elif types.is_date(column.type) and kind in ("number", "time"):
        days = column.cast(pa.date32()).cast(pa.int32())
        has_unit, values = True, days.cast(pa.float64()).to_numpy() * 86400.0
    elif kind != "time" and (
        types.is_integer(column.type)
        or types.is_floating(column.type)
        or types.is_decimal(column.type)
    ):
        values = column.cast(pa.float64(), safe=False).to_numpy()
    else:
        raise TraceError(
            f"{path}, column {name}: holds {column.type}, expected {KINDS[kind]} a row"
        )
    missing = column.is_null().to_numpy()
    return _checked(path, name, kind, np.array(values, dtype=np.float64), missing), has_unit


def _checked(path: Path, name: str, kind: str, values: FloatArray, missing: Any) -> FloatArray:
    is_good = np.isfinite(values)
    if kind in _UNKNOWN:
        values[missing] = _UNKNOWN[kind]
        is_good = missing | (is_good & (values >= 0))
    if kind == "count":
        is_good &= missing | ((values <= 2**53) & (values == np.rint(values)))
    bad = np.flatnonzero(~is_good)
    if bad.size:
        row = int(bad[0])
        what = "nothing" if missing[row] else f"{values[row]:g}"
        raise TraceError(f"{path}, row {row + 1}, column {name}: {what} is not {KINDS[kind]}")
    return values


def _parsed(path: Path, name: str, kind: str, column: Any) -> FloatArray:
    values = np.empty(len(column))
    for row, cell in enumerate(column):
        text = cell.as_py()
        try:
            values[row] = _PARSERS[kind](text)
        except (ValueError, TypeError, OverflowError):
            raise TraceError(
                f"{path}, row {row + 1}, column {name}: {shown(text)} is not {KINDS[kind]}"
            ) from None
    return values
