from __future__ import annotations

import gzip

import numpy as np
import pytest

from traces.files import read_trace, write_trace
from traces.generators.arrivals import bursty
from traces.trace import Trace, TraceError


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_trace_survives_its_file(tmp_path, suffix):
    made = bursty(10.0, 20.0, 4.0, 5.0, seed=1)
    count = len(made)
    trace = Trace(
        arrival_s=made.arrival_s,
        duration_s=5.0,
        slo_s=np.linspace(0.01, 0.1, count),
        query_class=np.arange(count) % 3,
        source="a source",
        licence="a licence",
        metadata=made.metadata,
    )
    path = tmp_path / f"t{suffix}"
    write_trace(path, trace)
    read = read_trace(path)
    for name in ("arrival_s", "slo_s", "query_class"):
        np.testing.assert_array_equal(getattr(read, name), getattr(trace, name))
    for name in ("duration_s", "source", "licence", "metadata"):
        assert getattr(read, name) == getattr(trace, name)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_the_same_trace_gives_the_same_bytes(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write_trace(path, bursty(10.0, 20.0, 4.0, 1.0, seed=1))
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s\n0.5\nx\n", r"t\.csv, line 3: 'x' is not a row of numbers; expected arrival_s"),
        ("arrival_s,slo_s\n0.5\n", r"line 2: 1 values, expected 2: arrival_s, slo_s"),
        ("# a comment\ntime\n1\n", r"line 2: header 'time' must name arrival_s"),
        ("arrival_s\n", "holds no arrivals"),
        ("", "is empty"),
        ("arrival_s\n2\n1\n", r"arrival_s\[1\] = 1 is before"),
        ("# duration_s: long\narrival_s\n1\n", "line 1: expected JSON"),
        ("# duration_s: 1\narrival_s\n2\n", "at most duration_s"),
        (
            f"# duration_s: -1{'0' * 400}\narrival_s\n1\n",
            "duration_s must be a finite number above 0",
        ),
        ("arrival_s\n0\n", "add a line '# duration_s: SECONDS'"),
    ],
)
def test_malformed_csv_is_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_gzip_that_ends_early_is_an_error(tmp_path):
    path = tmp_path / "t.csv.gz"
    rows = "".join(f"{i / 7}\n" for i in range(5000))
    path.write_bytes(gzip.compress(f"arrival_s\n{rows}".encode())[:-2000])
    with pytest.raises(TraceError, match="the gzip data ends early"):
        read_trace(path)


def test_files_that_are_not_traces_are_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(TraceError, match="not a Parquet file"):
        read_trace(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="no such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(TraceError, match=r"known suffixes: \.csv, \.csv\.gz, \.parquet"):
        read_trace(tmp_path / "t.txt")
