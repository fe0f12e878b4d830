"""Whatever a file holds, reading it gives a Trace or a TraceError that names the file.

Texts, CSV, JSON lines and Parquet with odd types are generated, most of them nearly right, since
what is all wrong is refused at the first line. A reader that asks for memory by what a file claims,
rather than by what it holds, would pass a limit far below a gigabyte.
"""

from __future__ import annotations

import gzip
import json
import resource
import tempfile
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces.burstiness import describe
from traces.spec.spec import parse_spec
from traces.trace import Trace, TraceError

GIB = 2**30
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=10_000)

NAMES = ("timestamp", "arrival_s", "slo_s", "tenant", "prompt_tokens", "size", "count", "x y")
LOG = "log:path={},order=sort"
SPECS: dict[str, str] = {
    "log": LOG,
    "log in ms": LOG + ",unit=ms,spread=step",
    "log of texts": LOG + ',unit=iso,classes=tenant,where="x y!=1"',
    "log with columns": LOG + ",slo=slo_s,session=tenant,prompt_tokens=prompt_tokens,size=size",
    "counts": "counts:path={},bin=60",
    "counts in time": "counts:path={},bin=1,time=timestamp,unit=ms",
    "azure2019": "azure2019:path={},qps=10,duration=10,classes=trigger",
    "azure2021": "azure2021:path={},classes=app",
    "azure-llm": "azure-llm:path={}",
    "mooncake": "mooncake:path={}",
    "servegen": "servegen:path={},model=m",
    "file": "{}",
}
HEADERS: dict[str, tuple[str, ...]] = {
    "azure2019": ("HashOwner", "HashApp", "HashFunction", "Trigger", "1", "2", "3"),
    "azure2021": ("app", "func", "end_timestamp", "duration"),
    "azure-llm": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "mooncake": ("timestamp", "timestamp_ms", "input_length", "output_length"),
    "servegen": ("model", "client", "dist", "window_start_s", "rate_rps", "shape", "scale"),
    "file": ("arrival_s", "slo_s", "query_class", "tenant", "prompt_tokens", "size"),
}

numbers = st.one_of(
    st.integers(-3, 10),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(0, 100),
    st.sampled_from([1700000000, 1700000000000, 1e300, -0.0]),
)
odd_texts = st.sampled_from(
    ["", " ", "nan", "inf", "1e999", "0x1", "1_0", "2024-01-01 00:00:01.5", "2024-13-01", "m",
     "Gamma", "http", "٣", "\ufeff1", "#", '"', "a\x00b", "True", "null", "-1", "9" * 400]
)  # fmt: skip
cells = st.one_of(numbers.map(str), odd_texts, st.text(max_size=8))
json_values = st.recursive(
    st.one_of(numbers, st.none(), st.booleans(), odd_texts, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def headers(kind: str) -> st.SearchStrategy[list[str]]:
    right = list(HEADERS.get(kind, NAMES))
    return st.one_of(st.just(right), st.lists(st.sampled_from([*right, "", "y"]), max_size=8))


@st.composite
def csv_files(draw: Any, kind: str) -> tuple[str, bytes]:
    """A table whose rows have mostly as many values as its header, in some encoding."""
    header = draw(headers(kind))
    width = st.one_of(st.just(len(header)), st.integers(0, len(header) + 2))
    good = numbers.map(str) if kind != "azure2019" else st.integers(0, 9).map(str)
    cell = st.one_of(good, good, cells)
    rows = draw(
        st.lists(width.flatmap(lambda n: st.lists(cell, min_size=n, max_size=n)), max_size=6)
    )
    start = draw(st.sampled_from(["", "", "\ufeff", "# duration_s: 1e400\n", "# metadata: [1]\n"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = (
        start
        + end.join(",".join(row) for row in [header, *rows])
        + draw(st.sampled_from(["", end]))
    )
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"]))
    return packed(draw, "csv", text.encode(encoding, errors="replace"))


@st.composite
def json_files(draw: Any, kind: str) -> tuple[str, bytes]:
    names = st.sampled_from([*HEADERS.get(kind, NAMES), "y"])
    rows = st.dictionaries(names, json_values, max_size=6)
    full = st.fixed_dictionaries(dict.fromkeys(HEADERS.get(kind, NAMES), numbers))
    lines = draw(st.lists(st.one_of(full, rows, json_values).map(json.dumps), max_size=5))
    lines += draw(st.sampled_from([[], ["{"], ["[" * 100_000], ["\ufeff{}"], ['{"timestamp": 1}']]))
    return packed(draw, "jsonl", "\n".join(lines).encode(errors="surrogatepass"))


def packed(draw: Any, suffix: str, data: bytes) -> tuple[str, bytes]:
    if draw(st.integers(0, 5)):
        return suffix, data
    cut = draw(st.integers(0, 12))
    return f"{suffix}.gz", gzip.compress(data)[: -cut or None]


def parquet_columns() -> dict[str, Callable[[list[Any]], Any]]:
    import pyarrow as pa

    def small(values: list[Any], kind: Any) -> Any:
        return pa.array([None if v is None else v % 100 for v in values], kind)

    def made(make: Callable[[int], Any], kind: Any) -> Callable[[list[Any]], Any]:
        return lambda values: pa.array([None if v is None else make(v) for v in values], kind)

    def moment(v: int) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=v % 10**9)

    return {
        "int64": lambda values: pa.array(values, pa.int64()),
        "uint64": made(lambda v: abs(v) + 2**63, pa.uint64()),
        "int8": lambda values: small(values, pa.int8()),
        "half": made(lambda v: float(v % 100), pa.float16()),
        "float": made(lambda v: v / 7, pa.float64()),
        "nan": made(lambda v: float("nan") if v % 2 else float("inf"), pa.float32()),
        "bool": made(lambda v: v % 2 == 0, pa.bool_()),
        "decimal": made(lambda v: Decimal(v % 100) / 4, pa.decimal128(12, 4)),
        "text": made(str, pa.string()),
        "large text": made(lambda v: str(moment(v)), pa.large_string()),
        "bytes": made(lambda v: bytes([v % 256]), pa.binary()),
        "dictionary": lambda values: made(str, pa.string())(values).dictionary_encode(),
        "seconds": made(lambda v: v % 10**13, pa.timestamp("s")),
        "far seconds": made(lambda v: 2**52 + v % 1000, pa.timestamp("s")),
        "zoned": made(moment, pa.timestamp("us", "Europe/Berlin")),
        "date": made(lambda v: date(2000, 1, 1 + v % 28), pa.date32()),
        "time": made(lambda v: time(v % 24), pa.time32("ms")),
        "duration": made(lambda v: v % 10**6, pa.duration("ms")),
        "list": made(lambda v: [v % 9], pa.list_(pa.int64())),
        "struct": made(lambda v: {"a": v % 9}, pa.struct([("a", pa.int64())])),
        "null": lambda values: pa.nulls(len(values)),
    }


@st.composite
def parquet_files(draw: Any, kind: str) -> tuple[str, bytes]:
    """Columns of any type under the right names, whole or with a few bytes of the file changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    makers = parquet_columns()
    num_rows = draw(st.integers(0, 6))
    value = st.one_of(st.integers(0, 9), st.integers(-(2**62), 2**62), st.none())
    names = list(dict.fromkeys(draw(headers(kind))))
    usual = st.sampled_from(["int64", "float", "text", "seconds"])
    arrays = [
        makers[draw(st.one_of(usual, st.sampled_from(list(makers))))](
            draw(st.lists(value, min_size=num_rows, max_size=num_rows))
        )
        for _ in names
    ]
    metadata = draw(st.sampled_from([None, {"duration_s": "1e400"}, {b"metadata": b"\xff"}]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, names=names).replace_schema_metadata(metadata), sink)
    data = bytearray(sink.getvalue().to_pybytes())
    if draw(st.integers(0, 4)) == 0:
        for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=3)):
            data[at] ^= draw(st.integers(1, 255))
    return "parquet", bytes(data)


FILES = {"csv": csv_files, "json": json_files, "parquet": parquet_files}


def check(kind: str, file: tuple[str, bytes], folder: Path) -> None:
    suffix, data = file
    path = folder / f"t.{suffix}"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        trace = parse_spec(SPECS[kind].format(path), seed=1)
    except TraceError as error:
        # "kind of file" refuses a suffix (no trace is JSON lines), before there is a file to name
        assert str(path) in str(error) or "neither a generator" in str(error)  # noqa: PT017
    else:
        assert isinstance(trace, Trace)
        json.dumps(describe(trace), allow_nan=False)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB


def of_every_kind() -> st.SearchStrategy[tuple[str, tuple[str, bytes]]]:
    return st.tuples(st.sampled_from(list(SPECS)), st.sampled_from(list(FILES))).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), FILES[pair[1]](pair[0]))
    )


@QUICK
@given(drawn=of_every_kind())
def test_a_generated_file_gives_a_trace_or_names_what_is_wrong(drawn):
    with tempfile.TemporaryDirectory() as folder:
        check(*drawn, Path(folder))


@pytest.mark.slow
@LONG
@given(drawn=of_every_kind())
def test_ten_thousand_generated_files_give_a_trace_or_name_what_is_wrong(drawn):
    with tempfile.TemporaryDirectory() as folder:
        check(*drawn, Path(folder))


@QUICK
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_bytes_of_no_format_give_a_trace_or_name_what_is_wrong(data):
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("csv", "jsonl", "parquet", "csv.gz"):
            check("log", (suffix, data), Path(folder))
            check("file", (suffix, data), Path(folder))


def test_the_generated_files_are_not_all_refused(tmp_path):
    """The oracle of the tests above: of well-formed files each kind gives a trace."""
    rows = {
        "log": "timestamp\n1\n2\n",
        "azure2019": "HashOwner,HashApp,HashFunction,Trigger,1\no,a,f,http,3\n",
        "servegen": "model,client,dist,window_start_s,rate_rps,shape,scale\nm,c,Gamma,0,1,1,1\n",
        "file": "arrival_s,size\n1,\n2,3\n",
    }
    tracemalloc.start()
    for kind, text in rows.items():
        path = tmp_path / "t.csv"
        path.write_text(text, encoding="utf-8")
        assert len(parse_spec(SPECS[kind].format(path))) >= 2
    assert tracemalloc.get_traced_memory()[1] < GIB
    tracemalloc.stop()
