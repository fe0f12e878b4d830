"""What a trace knows of its queries travels with them, through transforms and files."""

from __future__ import annotations

import numpy as np
import pytest

from traces.files import read_trace, write_trace
from traces.spec.spec import parse_spec
from traces.texts import Texts
from traces.trace import Trace, TraceError
from traces.trace_columns import OPTIONAL_COLUMNS

TENANTS = ["a, b", '"quoted"', "", "a, b", " padded", "two\nlines"]
SESSIONS = ["s1", "s1", "s2", "#3", "s2", "-"]


def full_trace() -> Trace:
    """Six arrivals that have every column, with unknown values where they may be."""
    return Trace(
        arrival_s=np.arange(6.0),
        duration_s=6.0,
        slo_s=np.arange(1.0, 7.0) / 10,
        query_class=np.arange(6) % 2,
        tenant=Texts.of(TENANTS),
        session=Texts.of(SESSIONS),
        prompt_tokens=np.array([5, -1, 0, 7, 2**40, 1]),
        output_tokens=np.arange(6),
        size=np.array([0.5, np.nan, 0.1 + 0.2, 3.0, 4.0, 1e300]),
    )


def values(trace: Trace) -> dict[str, list]:
    columns = {"arrival_s": trace.arrival_s, **trace.columns()}
    return {name: [str(v) for v in column.tolist()] for name, column in columns.items()}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_every_column_survives_its_file(tmp_path, suffix):
    trace, path = full_trace(), tmp_path / f"t{suffix}"
    write_trace(path, trace)
    assert set(trace.columns()) == set(OPTIONAL_COLUMNS)
    assert values(read_trace(path)) == values(trace)
    # ... and what is read can be written and read again.
    write_trace(tmp_path / "u.csv", read_trace(path))
    assert values(read_trace(tmp_path / "u.csv")) == values(trace)


def test_transforms_keep_each_querys_values():
    trace = full_trace()
    part = trace.window(1.0, 4.0)
    assert part.tenant.tolist() == TENANTS[1:4]
    np.testing.assert_array_equal(part.prompt_tokens, [-1, 0, 7])
    thin = trace.thin(0.5, np.random.default_rng(0))
    picked = thin.arrival_s.astype(int)
    assert 0 < len(thin) < 6
    assert thin.session.tolist() == [SESSIONS[i] for i in picked]
    np.testing.assert_array_equal(thin.output_tokens, picked)
    scaled = trace.rescale_rate(10.0)
    assert scaled.tenant.tolist() == TENANTS
    assert values(trace.window(0, 3).splice(trace.window(3, 6))) == values(trace)


def test_merging_orders_columns_and_fills_what_is_not_known():
    named = Trace(arrival_s=np.array([1.0, 3.0]), duration_s=4.0, tenant=Texts.of("xy"))
    counted = Trace(arrival_s=np.array([2.0]), duration_s=4.0, prompt_tokens=np.array([9]))
    both = named.merge(counted)
    assert both.tenant.tolist() == ["x", "", "y"]
    np.testing.assert_array_equal(both.prompt_tokens, [-1, 9, -1])
    ranked = Trace(arrival_s=np.array([2.0]), duration_s=4.0, query_class=np.array([1]))
    with pytest.raises(TraceError, match="merge: query_class is given for one of the traces only"):
        named.merge(ranked)


def test_equal_tenants_of_two_traces_are_one():
    spec = "poisson:rate=50,duration=1,tenant=a + poisson:rate=50,duration=1,tenant=b"
    trace = parse_spec(f"{spec} + poisson:rate=50,duration=1,tenant=a")
    assert trace.tenant.names == ("a", "b")
    assert len(trace.tenant) == len(trace)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"prompt_tokens": [1, -2, 3]}, r"prompt_tokens\[1\] = -2 must be at least 0, or -1"),
        ({"size": [1.0, np.inf, 3.0]}, r"size\[1\] = inf must be finite"),
        ({"tenant": ["a"]}, "tenant has 1 values for 3 arrivals"),
        ({"output_tokens": [[1, 2, 3]]}, "output_tokens must be one-dimensional"),
    ],
)
def test_columns_that_do_not_fit_are_refused(column, message):
    with pytest.raises(TraceError, match=message):
        Trace(arrival_s=np.arange(3.0), duration_s=3.0, **column)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt_tokens\n1,2\n\n2,x\n", r"line 4: '2,x' is not a row of numbers"),
        ("arrival_s,prompt_tokens\n1,2\n\n2,-7\n", r"line 4: prompt_tokens\[1\] = -7 must be"),
        ("# note\narrival_s\n3\n1\n", r"line 4: arrival_s\[1\] = 1 is before"),
        ("arrival_s,query_class\n1,\n", r"line 2: '1,' is not a row of numbers"),
        (
            "arrival_s\n0\n\n1e12\n",
            "line 4: duration_s is 1e[+]12, more than ten years; expected seconds",
        ),
        ("\narrival_s,tenant\n2,a\n1,b\n", r"line 4: arrival_s\[1\] = 1 is before"),
    ],
)
def test_a_value_that_cannot_be_is_named_by_its_line(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=message):
        read_trace(path)


def test_parquet_that_does_not_fit_is_named_by_its_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    arrival_s = [1.0, 2.0, 3.0]
    for column, message in (
        ({"query_class": pa.array([0.0, 1.5, 2.0])}, "row 2: column query_class .* got 1.5"),
        ({"query_class": pa.array([0, None, 2])}, "row 2: column query_class must hold a number"),
        ({"tenant": pa.array([1, 2, 3])}, "column tenant holds int64, it must hold texts"),
        ({"size": pa.array([[1], [2], [3]])}, "column size holds list.*, it must hold numbers"),
        (
            {"prompt_tokens": pa.array([2**64 - 1] * 3, pa.uint64())},
            "column prompt_tokens: .* not in range",
        ),
    ):
        pq.write_table(pa.table({"arrival_s": arrival_s, **column}), path)
        with pytest.raises(TraceError, match=message):
            read_trace(path)
