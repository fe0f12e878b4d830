"""Trace files: CSV (`.csv`, `.csv.gz`) and Parquet, read and written.

One row per query. Columns: `arrival_s` (obligatory), `slo_s`, `query_class`. What belongs to the
whole trace travels in `# key: json` lines before a CSV's header, and in a Parquet file's schema
metadata: duration_s, source, licence, metadata. CSV is read as a stream, eight bytes a value.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from slackfit.output_files import replacing
from traces.trace import Trace, TraceError

SUFFIXES = (".csv", ".csv.gz", ".parquet")
COLUMNS = ("arrival_s", "slo_s", "query_class")
_HEADER_KEYS = ("duration_s", "source", "licence", "metadata")
_WHAT_A_LINE_IS = "arrival_s in seconds (ascending), then optionally slo_s, query_class"


def read_trace(path: Path | str) -> Trace:
    """Read a trace file by its suffix.

    Without a `duration_s` in the file the last arrival ends the trace.

    Raises:
        TraceError: names the file, the line where there is one, and what is expected.
    """
    path = Path(path)
    read = _read_parquet if _suffix(path) == ".parquet" else _read_csv
    try:
        columns, header = read(path)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    arrival_s = columns["arrival_s"]
    if arrival_s.size == 0:
        raise TraceError(f"{path}: holds no arrivals; expected one per row: {_WHAT_A_LINE_IS}")
    try:
        return Trace(
            arrival_s=arrival_s,
            duration_s=_duration_s(header, arrival_s),
            slo_s=columns.get("slo_s"),
            query_class=columns.get("query_class"),
            source=str(header.get("source", path.name)),
            licence=str(header.get("licence", "")),
            metadata=_mapping(header.get("metadata", {"synthetic": False})),
        )
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def write_trace(path: Path | str, trace: Trace) -> None:
    """Write a trace by the suffix of `path`; the file appears whole or not at all.

    Raises:
        TraceError: for an unknown suffix, or when the file cannot be written.
    """
    path = Path(path)
    write = _write_parquet if _suffix(path) == ".parquet" else _write_csv
    try:
        with replacing(path) as temporary:
            write(temporary, trace, path.name.endswith(".gz"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error})") from None


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a plain or gzip text file for reading; broken gzip data raises OSError."""
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
                yield stream
        else:
            with path.open(encoding="utf-8", newline="") as stream:
                yield stream
    except EOFError as error:
        raise OSError(f"the gzip data ends early: {error}") from None
    except zlib.error as error:
        raise OSError(f"the gzip data is damaged: {error}") from None
    except UnicodeDecodeError as error:
        raise OSError(f"not a text file: {error}") from None


def has_trace_suffix(name: str) -> bool:
    """Say whether a file name is one that `read_trace` understands."""
    return name.endswith(SUFFIXES)


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise TraceError(f"{path}: unknown kind of trace file; known suffixes: {', '.join(SUFFIXES)}")


def _duration_s(header: Mapping[str, Any], arrival_s: np.ndarray) -> float:
    given = header.get("duration_s")
    if given is None:
        if arrival_s[-1] == 0:
            raise TraceError("all arrivals are at 0 s; add a line '# duration_s: SECONDS'")
        return float(arrival_s[-1])
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TraceError(f"duration_s must be a number of seconds, got {given!r}")
    return float(given)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(f"metadata must be a JSON object, got {type(value).__name__}")
    return value


def _header(trace: Trace) -> dict[str, Any]:
    values = (trace.duration_s, trace.source, trace.licence, dict(trace.metadata))
    return dict(zip(_HEADER_KEYS, values, strict=True))


def _columns(trace: Trace) -> dict[str, np.ndarray]:
    values = zip(COLUMNS, (trace.arrival_s, trace.slo_s, trace.query_class), strict=True)
    return {name: column for name, column in values if column is not None}


# CSV


def _read_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with open_text(path) as stream:
        header, line_number, names = _read_csv_head(path, stream)
        columns = [array("q" if name == "query_class" else "d") for name in names]
        converts = [int if name == "query_class" else float for name in names]
        for row in csv.reader(stream):
            line_number += 1
            if not row:
                continue
            if len(row) != len(names):
                raise TraceError(
                    f"{path}, line {line_number}: {len(row)} values, expected {len(names)}: "
                    f"{', '.join(names)}"
                )
            try:
                for column, convert, text in zip(columns, converts, row, strict=True):
                    column.append(convert(text))
            except (ValueError, OverflowError):
                raise TraceError(
                    f"{path}, line {line_number}: {','.join(row)[:80]!r} is not a row of numbers; "
                    f"expected {', '.join(names)}"
                ) from None
    arrays = (np.frombuffer(c, c.typecode) if c else np.empty(0, c.typecode) for c in columns)
    return dict(zip(names, arrays, strict=True)), header


def _read_csv_head(path: Path, stream: TextIO) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """Return what the comment lines say, the number of lines read, and the column names."""
    header: dict[str, Any] = {}
    for line_number, line in enumerate(iter(stream.readline, ""), start=1):
        text = line.strip()
        if not text.startswith("#"):
            names = tuple(name.strip() for name in text.split(","))
            return header, line_number, _checked_names(names, f"{path}, line {line_number}")
        key, _, value = text[1:].partition(":")
        if key.strip() in _HEADER_KEYS:
            header[key.strip()] = _decoded(value, f"{path}, line {line_number}")
    raise TraceError(f"{path}: is empty; expected a header line, then {_WHAT_A_LINE_IS}")


def _decoded(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TraceError(f"{where}: expected JSON after the colon ({error})") from None


def _checked_names(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or "arrival_s" not in names or len(set(names)) != len(names):
        raise TraceError(
            f"{where}: header {','.join(names)[:80]!r} must name arrival_s, and may name "
            f"{' and '.join(COLUMNS[1:])}, each once"
        )
    return names


def _write_csv(path: Path, trace: Trace, is_gzip: bool) -> None:
    columns = _columns(trace)
    rows: Iterable[tuple[float, ...]] = zip(*(c.tolist() for c in columns.values()), strict=True)
    # A fixed time stamp and no file name: the same trace gives the same bytes.
    with path.open("wb") as raw:
        stream = gzip.GzipFile("", "wb", 6, raw, mtime=0) if is_gzip else raw
        for key, value in _header(trace).items():
            stream.write(f"# {key}: {json.dumps(value)}\n".encode())
        stream.write((",".join(columns) + "\n").encode())
        for row in rows:
            stream.write((",".join(map(repr, row)) + "\n").encode())
        if is_gzip:
            stream.close()


# Parquet


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = _checked_names(tuple(schema.names), str(path))
            for name in names:
                if not _is_numeric(schema.field(name).type):
                    raise TraceError(f"{path}: column {name} must hold numbers without gaps")
            columns = _parquet_columns(path, file, names)
    except pa.ArrowInvalid as error:
        raise TraceError(f"{path}: not a Parquet file ({error})") from None
    stored = schema.metadata or {}
    header = {
        key: _decoded(stored[key.encode()].decode(), f"{path}, schema metadata {key}")
        for key in _HEADER_KEYS
        if key.encode() in stored
    }
    return columns, header


def _is_numeric(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _parquet_columns(path: Path, file: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read batch by batch into arrays of the final size: nothing is held twice."""
    num_rows = file.metadata.num_rows
    columns = {n: np.empty(num_rows, np.int64 if n == "query_class" else float) for n in names}
    at = 0
    for batch in file.iter_batches(batch_size=1 << 17):
        for name in names:
            column = batch.column(name)
            if column.null_count:
                raise TraceError(f"{path}: column {name} must hold numbers without gaps")
            columns[name][at : at + len(column)] = column.to_numpy(zero_copy_only=False)
        at += batch.num_rows
    for column in columns.values():
        column.flags.writeable = False
    return columns


def _write_parquet(path: Path, trace: Trace, is_gzip: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert not is_gzip, "Parquet compresses itself; .parquet.gz is no known suffix"
    table = pa.table(_columns(trace))
    metadata = {key: json.dumps(value) for key, value in _header(trace).items()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
