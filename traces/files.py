"""Trace files: CSV (`.csv`, `.csv.gz`) and Parquet, read and written.

One row per query. Columns: `arrival_s` (obligatory) and those of `trace_columns`. What belongs to
the whole trace travels in `# key: json` lines before a CSV's header, and in a Parquet file's schema
metadata: duration_s, source, licence, metadata.
"""

from __future__ import annotations

from pathlib import Path

from slackfit.output_files import replacing
from traces.csv_traces import read_csv, write_csv
from traces.file_header import WHAT_A_LINE_IS, duration_s_of, metadata_of
from traces.parquet_traces import read_parquet, write_parquet
from traces.trace import Trace, TraceError

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def read_trace(path: Path | str) -> Trace:
    """Read a trace file by its suffix.

    Without a `duration_s` in the file the last arrival ends the trace.

    Raises:
        TraceError: names the file, the line where there is one, and what is expected.
    """
    path = Path(path)
    read = read_parquet if _suffix(path) == ".parquet" else read_csv
    try:
        columns, header, places = read(path)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    arrival_s = columns["arrival_s"]
    if arrival_s.size == 0:
        raise TraceError(f"{path}: holds no arrivals; expected one per row: {WHAT_A_LINE_IS}")
    try:
        return Trace(
            arrival_s=arrival_s,
            duration_s=duration_s_of(header, float(arrival_s[-1])),
            **{name: column for name, column in columns.items() if name != "arrival_s"},
            source=str(header.get("source", path.name)),
            licence=str(header.get("licence", "")),
            metadata=metadata_of(header),
        )
    except TraceError as error:
        where = "" if error.index is None else f", {places.of(error.index)}"
        raise TraceError(f"{path}{where}: {error}") from None


def write_trace(path: Path | str, trace: Trace) -> None:
    """Write a trace by the suffix of `path`; the file appears whole or not at all.

    Raises:
        TraceError: for an unknown suffix, or when the file cannot be written.
    """
    path = Path(path)
    write = write_parquet if _suffix(path) == ".parquet" else write_csv
    try:
        with replacing(path) as temporary:
            write(temporary, trace, path.name.lower().endswith(".gz"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error})") from None


def has_trace_suffix(name: str) -> bool:
    """Say whether a file name is one that `read_trace` understands."""
    return name.lower().endswith(SUFFIXES)


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise TraceError(f"{path}: unknown kind of trace file; known suffixes: {', '.join(SUFFIXES)}")
