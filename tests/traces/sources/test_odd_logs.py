"""Logs as they are found: other units, other editors, coarse clocks, rows that can't be meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.burstiness import describe
from traces.open_loop.sender_processes import processes_for
from traces.sources.request_logs import request_log
from traces.spec.spec import parse_spec
from traces.trace import TraceError


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("type_unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("unit", ["s", "ms", "iso"])
def test_a_column_of_timestamps_has_its_own_unit(tmp_path, type_unit, unit):
    import pyarrow as pa
    import pyarrow.parquet as pq

    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[type_unit]
    at = pa.array([0, 2 * per_s, 5 * per_s], pa.timestamp(type_unit))
    limits = pa.array([per_s, per_s, 2 * per_s], pa.duration(type_unit))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"timestamp": at, "limit": limits}), path)
    trace = parse_spec(f"log:path={path},unit={unit},slo=limit,slo_unit=ms")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 2.0, 5.0])
    np.testing.assert_allclose(trace.slo_s, [1.0, 1.0, 2.0])


def test_mooncake_in_parquet_keeps_the_unit_of_its_type(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = pa.array([0, 3000, 6000], pa.timestamp("ms"))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"timestamp_ms": at, "input_length": [1, None, 3]}), path)
    trace = parse_spec(f"mooncake:path={path}")
    assert trace.duration_s == pytest.approx(6, abs=3.1)
    np.testing.assert_array_equal(trace.prompt_tokens, [1, -1, 3])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["log", "counts", "file", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, encoding, kind):
    texts = {
        "log": "timestamp,user\r\n1.0,a\r\n2.5,b\r\n",
        "counts": "count\n3\n2\n",
        "file": "arrival_s,tenant\n1,a\n2,b\n",
        "jsonl": '{"timestamp": 1}\n{"timestamp": 2}\n',
    }
    path = write(tmp_path / f"t.{'jsonl' if kind == 'jsonl' else 'csv'}", texts[kind], encoding)
    spec = {"counts": f"counts:path={path},bin=1", "file": str(path)}
    assert len(parse_spec(spec.get(kind, f"log:path={path}"))) in (2, 5)


def test_a_number_where_a_text_was_expected_is_named(tmp_path):
    path = write(
        tmp_path / "t.jsonl", '{"TIMESTAMP": "2024-01-01 00:00:00"}\n\n{"TIMESTAMP": 17}\n'
    )
    with pytest.raises(TraceError, match=r"t\.jsonl, line 3, column TIMESTAMP: 17 is not a time"):
        parse_spec(f"azure-llm:path={path}")
    path = write(tmp_path / "u.jsonl", '{"timestamp": true}\n')
    with pytest.raises(TraceError, match="line 1, column timestamp: True is not a finite number"):
        parse_spec(f"log:path={path}")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("0\n1700000000000\n1700000000500\n", 2),
        ("1700000000000\n1700000000500\n1700000000700\n99999999999999\n", 5),
        ("# from a tool\n1700000000000\n1700000000500\n\n1700000000700\n0\n", 7),
    ],
)
def test_a_time_that_no_log_spans_is_refused_with_its_line(tmp_path, rows, line):
    path = write(tmp_path / "t.csv", "timestamp\n" + rows)
    with pytest.raises(TraceError, match=rf"line {line}, column timestamp: the log spans .* years"):
        parse_spec(f"log:path={path},unit=ms,order=sort")


def test_what_a_long_silence_costs_does_not_grow_with_it(tmp_path):
    """Nine years between two requests: counts, senders and dispersion are those of two seconds."""
    path = write(tmp_path / "t.csv", "timestamp\n0\n0.5\n283824000\n")
    trace = parse_spec(f"log:path={path}")
    info = describe(trace)
    assert info["peak_qps"] == 2.0
    assert info["index_of_dispersion"]["1"] == pytest.approx(2, rel=1e-6)
    assert processes_for(trace) == 1


def test_few_windows_and_many_are_counted_alike():
    from traces.burstiness import count_moments

    trace = parse_spec("gamma:rate=40,cv2=3,duration=20", seed=3)
    sparse = count_moments(trace, 0.001)  # 20,000 windows, 800 arrivals
    counts = np.bincount((trace.arrival_s / 0.001 + 1e-9).astype(int), minlength=20_000)
    assert sparse.num_windows == 20_000
    assert sparse.mean == pytest.approx(counts.mean())
    assert sparse.variance == pytest.approx(counts.var())


SECONDS = "Timestamp,Model\n" + "".join(f"{i // 4},{'ab'[i % 2]}\n" for i in range(40))


def test_a_coarse_clock_is_said_and_spread_on_request(tmp_path):
    path = write(tmp_path / "t.csv", SECONDS)
    as_it_is = parse_spec(f"log:path={path},time=Timestamp")
    assert "40 requests at 10 moments, at least 1 s apart" in as_it_is.metadata["clock"]
    assert "spread=step" in as_it_is.metadata["clock"]
    for step in ("step", "1"):
        drawn = parse_spec(f"log:path={path},time=Timestamp,spread={step}", seed=1)
        assert len(np.unique(drawn.arrival_s)) == 40
        assert drawn.metadata["synthetic_part"] == "the times inside each time step of 1 s"
        assert "clock" not in drawn.metadata
    fine = write(tmp_path / "fine.csv", "timestamp\n" + "".join(f"{i / 7}\n" for i in range(9)))
    assert "clock" not in parse_spec(f"log:path={fine}").metadata
    with pytest.raises(TraceError, match="spread must be step, or the step's length"):
        parse_spec(f"log:path={path},time=Timestamp,spread=often")


def test_where_keeps_rows_by_their_texts(tmp_path):
    path = write(tmp_path / "t.csv", SECONDS)
    trace = parse_spec(f"log:path={path},time=Timestamp,where=Model=b,classes=Model")
    assert len(trace) == 20
    assert set(trace.tenant.tolist()) == {"b"}
    assert trace.metadata["where"] == "Model=b"
    other = parse_spec(f"log:path={path},time=Timestamp,where=Model!=b & Model=a|c")
    assert len(other) == 20
    with pytest.raises(TraceError, match="no row where Model=z; column Model holds 'a', 'b'"):
        parse_spec(f"log:path={path},time=Timestamp,where=Model=z")
    with pytest.raises(TraceError, match="'Model' is not COLUMN=VALUE"):
        parse_spec(f"log:path={path},time=Timestamp,where=Model")


def test_short_deadlines_are_lifted_on_request(tmp_path):
    path = write(tmp_path / "t.csv", "timestamp,limit\n0,50\n1,0\n2,5\n")
    with pytest.raises(TraceError, match="line 3, column limit: 0, expected above 0"):
        parse_spec(f"log:path={path},slo=limit")
    trace = parse_spec(f"log:path={path},slo=limit,slo_min=10")
    np.testing.assert_allclose(trace.slo_s, [0.05, 0.01, 0.01])


def test_what_a_log_is_asked_for_is_refused_in_words(tmp_path):
    """A `where` on the column of times ended in a KeyError; other words were taken for defaults."""
    path = write(tmp_path / "t.csv", "timestamp,limit\n0,50\n1,5\n")
    for column in ("timestamp", "limit"):
        with pytest.raises(TraceError, match=f"'{column}' is asked for as number and as text"):
            parse_spec(f"log:path={path},slo=limit,where={column}!=0")
    for key, value, allowed in (
        ("unit", "sec", "s, ms, us, ns, iso"),
        ("slo_unit", "iso", "s, ms, us, ns"),
        ("delimiter", "pipe", "comma, tab, semicolon"),
        ("order", "sorted", "check, sort"),
    ):
        with pytest.raises(TraceError, match=f"{key} is '{value}', allowed {allowed}$"):
            request_log(path, **{key: value})


def test_a_log_keeps_its_columns_and_ranks_tenants_when_asked(tmp_path):
    text = "timestamp,who,chat,in,out,steps\n0,web,s1,5,,1.5\n1,job,s2,6,7,\n"
    path = write(tmp_path / "t.csv", text)
    spec = f"log:path={path},classes=who,session=chat,prompt_tokens=in,output_tokens=out,size=steps"
    trace = parse_spec(spec)
    assert trace.query_class is None
    assert trace.session.tolist() == ["s1", "s2"]
    np.testing.assert_array_equal(trace.prompt_tokens, [5, 6])
    np.testing.assert_array_equal(trace.output_tokens, [-1, 7])
    np.testing.assert_array_equal(trace.size, [1.5, np.nan])
    ranked = parse_spec(f"{spec},priorities=web:1/*:0")
    np.testing.assert_array_equal(ranked.query_class, [1, 0])
    with pytest.raises(TraceError, match="priorities names no priority for tenant 'job'"):
        parse_spec(f"{spec},priorities=web:1")


def test_llm_lengths_are_kept(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,374,44\n"
    path = write(tmp_path / "t.csv", text + "2024-01-01 00:00:01,5,6\n")
    trace = parse_spec(f"azure-llm:path={path}")
    np.testing.assert_array_equal(trace.prompt_tokens, [374, 5])
    np.testing.assert_array_equal(trace.output_tokens, [44, 6])


def test_counts_at_times_are_added_up_with_gaps_and_in_any_order(tmp_path):
    text = "at,series,n\n180,a,3\n0,a,1.5\n0,b,0.5\n60.4,a,2\n300,a,4\n"
    path = write(tmp_path / "t.csv", text)
    trace = parse_spec(f"counts:path={path},bin=60,column=n,time=at")
    assert trace.duration_s == 360.0
    found = np.histogram(trace.arrival_s, np.arange(7) * 60.0)[0]
    np.testing.assert_array_equal(found, [2, 2, 0, 3, 0, 4])
    part = parse_spec(f"counts:path={path},bin=60,column=n,time=at,start=120,length=120")
    assert (len(part), part.duration_s) == (3, 120.0)


def test_finer_rows_fall_into_their_bins(tmp_path):
    text = "at,count\n" + "".join(f"{s},1\n" for s in range(120))
    trace = parse_spec(f"counts:path={write(tmp_path / 't.csv', text)},bin=60,time=at")
    np.testing.assert_array_equal(np.histogram(trace.arrival_s, [0, 60, 120])[0], [60, 60])


def test_fractional_counts_keep_their_sum(tmp_path):
    path = write(tmp_path / "t.csv", "count\n" + "0.25\n" * 400)
    assert len(parse_spec(f"counts:path={path},bin=1")) == 100


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("bin=60", r"7,000,000,000 arrivals would take about .* GiB.*qps=RATE,duration=SECONDS"),
        ("bin=60,start=600", "no whole bin of 60 s lies in start=600"),
        ("bin=60,column=at,time=at", "time and column both name 'at'"),
        ("bin=0", "bin must be a finite number above 0"),
    ],
)
def test_counts_that_cannot_be_are_refused_before_they_are_made(
    tmp_path, monkeypatch, keys, message
):
    monkeypatch.setattr("traces.memory.free_bytes", lambda: 8.0 * 2**30)
    path = write(tmp_path / "t.csv", "at,count\n0,3000000000\n60,4000000000\n")
    with pytest.raises(TraceError, match=message):
        parse_spec(f"counts:path={path},{keys}")


@pytest.mark.parametrize(
    "spec",
    [
        "poisson:rate=1e9,duration=1e3",
        "gamma:rate=1e9,cv2=2,duration=1e3",
        "bursty:base=1e9,variant=1,cv2=2,duration=1e3",
        "mmpp:low=1,high=1e10,low_s=1,high_s=1,duration=1e3",
        "step:before=1,after=1e9,at=1,duration=1e4",
        "azure2019-shape:qps=1e9,duration=1e3",
    ],
)
def test_more_arrivals_than_memory_are_refused_with_the_number(spec, monkeypatch):
    monkeypatch.setattr("traces.memory.free_bytes", lambda: 8.0 * 2**30)
    with pytest.raises(TraceError, match=r"arrivals would take about .* GiB are free"):
        parse_spec(spec)


SERVEGEN = "category,model,client,window_start_s,rate_rps,cv,dist,shape,scale\n"


@pytest.mark.parametrize(("dist", "shape"), [("Gamma", 0.2), ("Weibull", 0.5), ("Gamma", 3.0)])
def test_servegen_has_the_recorded_rate_whatever_the_fitted_gaps_say(tmp_path, dist, shape):
    """Fitted gaps of twice the recorded mean; 40 windows of one client, counted together."""
    rows = "".join(f"x,m,0,{600 * k},5,1,{dist},{shape},9\n" for k in range(40))
    trace = parse_spec(
        f"servegen:path={write(tmp_path / 't.csv', SERVEGEN + rows)},model=m,length=24000"
    )
    cv2 = {0.2: 5.0, 0.5: 5.0, 3.0: 1 / 3}[shape]
    assert abs(len(trace) - 120_000) < 4 * (120_000 * cv2) ** 0.5


@pytest.mark.parametrize(
    "text",
    [
        "\n\ntimestamp,user\n1,a\n2,b\n",
        'timestamp, user\n1, "a, x"\n2, "b"\n',
        "timestamp,user,\n1,a,\n2,b,\n,,\n",
        "timestamp,user\n1,a,,\n2,b\n \n\n",
        "# from a tool\n timestamp ,user\n1,a\n# half\n2,b\n",
        "timestamp,user\r1,a\r2,b\r",
    ],
)
def test_what_editors_and_spreadsheets_leave_is_read(tmp_path, text):
    trace = parse_spec(f"log:path={write(tmp_path / 'T.CSV', text)},classes=user")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.0])
    assert trace.tenant.names[0][0] == "a"


def test_who_is_left_out_is_no_tenant(tmp_path):
    """A tenant of no row that is kept had been counted, and a priority asked of it."""
    text = "timestamp,user,model\n0,b,y\n1,c,x\n1.5,b,y\n2,a,x\n3,c,x\n"
    spec = f"log:path={write(tmp_path / 't.csv', text)},where=model=x,classes=user"
    trace = parse_spec(f"{spec},priorities=a:1/c:0")
    assert trace.tenant.tolist() == ["c", "a", "c"]
    assert trace.metadata["num_tenants"] == 2
    assert trace.metadata["tenants"] == {"0": "c", "1": "a"}
    assert trace.query_class.tolist() == [0, 1, 0]
    with pytest.raises(TraceError, match="names no priority for tenant 'a'"):
        parse_spec(f"{spec},priorities=c:0")


def test_a_line_of_a_quoted_text_is_no_comment(tmp_path):
    """Prompts in Markdown: of these three requests one was swallowed without a word."""
    text = 'timestamp,prompt\n0,"a\n# b"\n# half\n1.5,"c\n# d"\n2,x\n'
    trace = parse_spec(f"log:path={write(tmp_path / 't.csv', text)},session=prompt")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.5, 2.0])
    assert trace.session.tolist() == ["a\n# b", "c\n# d", "x"]


def test_another_delimiter_is_guessed_at_in_the_error(tmp_path):
    path = write(tmp_path / "t.csv", "timestamp;user\n1;a\n2;b\n")
    with pytest.raises(TraceError, match="they hold ';': is it the delimiter"):
        parse_spec(f"log:path={path}")
    assert len(parse_spec(f"log:path={path},delimiter=semicolon")) == 2
