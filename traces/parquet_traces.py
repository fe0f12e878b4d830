"""Trace files in Parquet: typed columns, with what belongs to the whole in the schema's metadata.

Numbers are read batch by batch into arrays of the final size, so that nothing is held twice; a null
is an unknown value, where one may be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces.file_header import HEADER_KEYS, checked_names, decoded, header_of
from traces.memory import check_arrivals
from traces.places import Places
from traces.texts import Texts
from traces.trace import Trace
from traces.trace_columns import OPTIONAL_COLUMNS, UNKNOWN_COUNT
from traces.trace_error import TraceError

_EXACT = float(2**53)  # whole numbers above are not all floats


def read_parquet(path: Path) -> tuple[dict[str, Any], dict[str, Any], Places]:
    """Return columns, header and rows of a Parquet trace. Raises TraceError with file and row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = checked_names(tuple(schema.names), str(path))
            for name in names:
                _check_type(path, name, schema.field(name).type)
            check_arrivals(
                file.metadata.num_rows, f"cut {path} into parts", bytes_each=24 * len(names)
            )
            columns = _columns(path, file, names)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not a Parquet file that can be read ({error})") from None
    stored = schema.metadata or {}
    header = {
        key: decoded(stored[key.encode()].decode(errors="replace"), f"{path}, metadata {key}")
        for key in HEADER_KEYS
        if key.encode() in stored
    }
    return columns, header, Places()


def write_parquet(path: Path, trace: Trace, is_gzip: bool) -> None:
    """Write a trace; texts are dictionaries, unknown values null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert not is_gzip, "Parquet compresses itself; .parquet.gz is no known suffix"
    columns = {"arrival_s": trace.arrival_s, **trace.columns()}
    table = pa.table({name: _to_arrow(name, column) for name, column in columns.items()})
    pq.write_table(table.replace_schema_metadata(dict(header_of(trace))), path)


def _to_arrow(name: str, column: Any) -> Any:
    import pyarrow as pa

    if isinstance(column, Texts):
        names = pa.array(list(column.names), pa.string())
        codes = pa.array(column.codes.astype(np.int32))
        return pa.DictionaryArray.from_arrays(codes, names)
    known = OPTIONAL_COLUMNS.get(name)
    if known is None or not known.may_be_unknown:
        return pa.array(column)
    return pa.array(
        column, mask=column == UNKNOWN_COUNT if known.kind == "integer" else np.isnan(column)
    )


def _check_type(path: Path, name: str, kind: Any) -> None:
    import pyarrow as pa

    known = OPTIONAL_COLUMNS.get(name)
    wanted = known.kind if known else "number"
    if wanted == "text":
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
            raise TraceError(f"{path}: column {name} holds {kind}, it must hold texts")
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise TraceError(f"{path}: column {name} holds {kind}, it must hold numbers")


def _columns(path: Path, file: Any, names: tuple[str, ...]) -> dict[str, Any]:
    import pyarrow as pa

    num_rows = file.metadata.num_rows
    kinds = {n: OPTIONAL_COLUMNS[n].kind if n in OPTIONAL_COLUMNS else "number" for n in names}
    made = {n: np.empty(num_rows, float if kinds[n] == "number" else np.int64) for n in names}
    numbers: dict[str, dict[str | None, int]] = {n: {} for n in names if kinds[n] == "text"}
    at = 0
    for batch in file.iter_batches(batch_size=1 << 17):
        for name in names:
            column, part = batch.column(name), made[name][at : at + batch.num_rows]
            if name in numbers:
                dense = column.cast(pa.string()).dictionary_encode(null_encoding="encode")
                known = numbers[name]
                codes = [
                    known.setdefault(t or "", len(known)) for t in dense.dictionary.to_pylist()
                ]
                part[:] = np.array(codes, np.int64)[dense.indices.to_numpy(zero_copy_only=False)]
            else:
                part[:] = _numbers(path, name, column, at)
        at += batch.num_rows
    for column in made.values():
        column.flags.writeable = False
    return {
        n: Texts(c, tuple(map(str, numbers[n]))) if n in numbers else c for n, c in made.items()
    }


def _numbers(path: Path, name: str, column: Any, first_row: int) -> Any:
    """Return a batch's numbers as the column's type, unknown values in place of nulls."""
    import pyarrow as pa

    known = OPTIONAL_COLUMNS.get(name)
    is_whole = known is not None and known.kind == "integer"
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if column.null_count and not (known and known.may_be_unknown):
        row = first_row + int(np.flatnonzero(missing)[0]) + 1
        raise TraceError(f"{path}, row {row}: column {name} must hold a number in every row")
    if is_whole and pa.types.is_integer(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise TraceError(f"{path}, column {name}: {error}") from None
        return column.fill_null(UNKNOWN_COUNT).to_numpy(zero_copy_only=False)
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    if not is_whole:
        return values
    bad = np.flatnonzero(~missing & ~((np.abs(values) <= _EXACT) & (values == np.rint(values))))
    if bad.size:
        row, value = first_row + int(bad[0]) + 1, values[bad[0]]
        raise TraceError(f"{path}, row {row}: column {name} must hold whole numbers, got {value:g}")
    return np.where(missing, UNKNOWN_COUNT, np.where(missing, 0, values).astype(np.int64))
