"""Loaders of published and of other logs, on made-up files; on the genuine ones where they are."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from traces.spec.spec import parse_spec
from traces.trace import TraceError


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def genuine(name: str) -> Path:
    """Return a file of the data folder, or skip with the reason."""
    folder = os.environ.get("SUPERNET_DATA_DIR")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"needs {name} under SUPERNET_DATA_DIR")
    return Path(folder) / name


AZURE_2021 = "app,func,end_timestamp,duration\na,f,0.08,0.08\na,g,9.0,8.5\nb,h,4.0,0\n"


def test_azure2021_starts_a_request_at_its_end_less_its_duration(tmp_path):
    path = write(tmp_path / "t.csv", AZURE_2021)
    trace = parse_spec(f"azure2021:path={path},classes=app,slo_scale=2")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 0.5, 4.0])
    np.testing.assert_allclose(trace.slo_s, [0.16, 17.0, 0.001])
    assert trace.tenant.tolist() == ["a", "a", "b"]
    assert trace.query_class is None
    assert trace.metadata["synthetic"] is False
    assert "synthetic_part" not in trace.metadata
    assert "CC-BY" in trace.licence


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_azure_llm_reads_the_times_of_2023_and_2024(tmp_path, name):
    rows = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,1,1\n"
    rows += "2023-11-16 18:15:51+00:00,1,1\n"
    path = write(tmp_path / name, "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    trace = parse_spec(f"azure-llm:path={path}")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 4.0, 4.31941], atol=1e-6)


def test_mooncake_spreads_requests_inside_its_time_steps_and_says_so(tmp_path):
    rows = [{"timestamp": 3000 * (i // 100), "input_length": 5} for i in range(1000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    jsonl = parse_spec(f"mooncake:path={write(tmp_path / 't.jsonl', lines)}", seed=1)
    text = "timestamp_ms,input_length\n" + "".join(f"{r['timestamp']},5\n" for r in rows)
    csv = parse_spec(f"mooncake:path={write(tmp_path / 't.csv.gz', text)}", seed=1)
    np.testing.assert_array_equal(jsonl.arrival_s, csv.arrival_s)
    assert jsonl.metadata["synthetic_part"] == "the times inside each time step of 3 s"
    counts = np.histogram(jsonl.arrival_s + 0.01, np.arange(0, 31, 3))[0]
    np.testing.assert_allclose(counts, 100, atol=2)
    assert len(np.unique(jsonl.arrival_s)) == 1000


SERVEGEN = "category,model,client,window_start_s,rate_rps,cv,dist,shape,scale\n"


def test_servegen_draws_each_clients_gaps(tmp_path):
    rows = "x,m,0,0,20,1,Gamma,1,0.05\nx,m,1,0,5,2,Weibull,0.5,0.1\nx,m,0,600,40,1,Gamma,1,0.025\n"
    path = write(tmp_path / "t.csv", SERVEGEN + rows + "x,other,0,0,9,1,Gamma,1,1\n")
    trace = parse_spec(f"servegen:path={path},model=m,length=1200,classes=client", seed=2)
    counts = [
        np.sum((np.array(trace.tenant.tolist()) == c) & (trace.arrival_s // 600 == w))
        for c, w in (("0", 0), ("1", 0), ("0", 1), ("1", 1))
    ]
    # Poisson for client 0; the Weibull of shape 0.5 has squared CV 5 and mean gap 0.2 s.
    for count, wanted, cv2 in zip(counts, (12_000, 3_000, 24_000, 0), (1, 5, 1, 1), strict=True):
        assert abs(count - wanted) <= 4 * (wanted * cv2) ** 0.5
    busiest = parse_spec(f"servegen:path={path},model=m,clients=1,qps=100")
    assert busiest.metadata["clients"] == 1
    assert busiest.rate_qps == pytest.approx(100)
    assert "drawn from each client" in busiest.metadata["synthetic_part"]


@pytest.mark.parametrize(
    ("rows", "spec", "message"),
    [
        (
            "x,m,0,0,20,1,Gauss,1,1\n",
            "m",
            "line 2, column dist: 'Gauss', expected Gamma or Weibull",
        ),
        ("x,m,0,0,20,1,Gamma,0,1\n", "m", "line 2, column shape: 0, expected above 0"),
        ("x,m,0,0,2,1,Weibull,0.004,1\n", "m", "line 2, column shape: 0.004, expected 0.01 to "),
        ("x,m,0,0,2,1,Gamma,1e-300,1\n", "m", "line 2, column shape: 1e-300, expected 0.0001 to"),
        (
            "x,m,0,0,2,1,Gamma,0.1,5e-324\n",
            "m",
            "line 2, column scale: 4.9.*e-324, expected 1e-100",
        ),
        ("x,m,0,0,2,1,Gamma,x,1\n", "m", "line 2, column shape: 'x' is not a finite number"),
        ("x,m,0,0,2,1,Gamma,1,1\n", "n", "no model 'n'; there are m"),
        ("x,m,0,0,2,1,Gamma,1,1\n", "m,start=600", "m has no traffic in .*; it spans 0 to 600 s"),
    ],
)
def test_a_servegen_table_that_does_not_fit_is_named(tmp_path, rows, spec, message):
    path = write(tmp_path / "t.csv", SERVEGEN + rows)
    with pytest.raises(TraceError, match=message):
        parse_spec(f"servegen:path={path},model={spec}")


def test_a_log_has_columns_units_and_classes_of_its_own(tmp_path):
    text = "when\tkind\tlimit\n2000\tb\t50\n1500\ta\t20\n4000\tb\t50\n"
    path = write(tmp_path / "t.tsv", text)
    spec = f"log:path={path},time=when,unit=ms,slo=limit,classes=kind,delimiter=tab"
    with pytest.raises(TraceError, match="line 3: is earlier than the row before; .*order=sort"):
        parse_spec(spec)
    trace = parse_spec(f"{spec},order=sort")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 0.5, 2.5])
    np.testing.assert_allclose(trace.slo_s, [0.02, 0.05, 0.05])
    assert trace.tenant.tolist() == ["a", "b", "b"]
    assert trace.query_class is None
    assert trace.metadata["tenants"] == {"0": "b", "1": "a"}
    part = parse_spec(f"{spec},order=sort,start=0.4,length=1,qps=4")
    assert len(part) == 1
    assert part.duration_s == pytest.approx(0.25)
    assert "the scale of time" in part.metadata["synthetic_part"]


def test_a_log_may_be_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"at": pa.array([0, 10**9, 3 * 10**9], pa.timestamp("ns")), "who": list("aba")}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    trace = parse_spec(f"log:path={tmp_path / 't.parquet'},time=at,unit=iso,classes=who")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.0, 3.0])
    assert trace.tenant.tolist() == ["a", "b", "a"]
    with pytest.raises(TraceError, match="no column 'when'; the columns are at, who"):
        parse_spec(f"log:path={tmp_path / 't.parquet'},time=when")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestamp\n1\nnan\n", "line 3, column timestamp: 'nan' is not a finite number"),
        ("timestamp\n1\ninf\n", "line 3, column timestamp: 'inf' is not a finite number"),
        ("timestamp\n1\n\n2,3\n", "line 4: 2 values, expected 1: timestamp"),
        ("timestamp\n", "holds no rows"),
        ("", "line 1: no column 'timestamp'; the columns are -"),
        ("time\n1\n", "line 1: no column 'timestamp'; the columns are time"),
        ("timestamp\n5\n5\n", "all 2 requests have the same time"),
    ],
)
def test_a_log_that_cannot_be_read_is_named_by_file_and_line(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TraceError, match=message) as caught:
        parse_spec(f"log:path={path}")
    assert str(path) in str(caught.value)


def test_gzip_that_ends_early_is_an_error(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"timestamp\n" + b"1\n2\n3\n" * 1000)[:-20])
    with pytest.raises(TraceError, match="the gzip data ends early"):
        parse_spec(f"log:path={path}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: expected an object a line"),
        ('{"t": 1}', "line 1: no field 'timestamp'; there are t"),
        ('{"timestamp": "x"}', "line 1, column timestamp: 'x' is not a finite number"),
    ],
)
def test_json_lines_that_do_not_fit_are_named(tmp_path, line, message):
    with pytest.raises(TraceError, match=message):
        parse_spec(f"mooncake:path={write(tmp_path / 't.jsonl', line)}")


def test_counts_keep_their_rate_or_are_squeezed(tmp_path):
    path = write(tmp_path / "t.csv", "minute,count\n0,60\n1,0\n2,180\n")
    natural = parse_spec(f"counts:path={path},bin=60")
    assert (len(natural), natural.duration_s) == (240, 180.0)
    counts = np.histogram(natural.arrival_s, [0, 60, 120, 180])[0]
    np.testing.assert_array_equal(counts, [60, 0, 180])
    squeezed = parse_spec(f"counts:path={path},bin=60,qps=1000,duration=3,placement=gamma,cv2=4")
    assert len(squeezed) == 3000
    assert not np.any((squeezed.arrival_s > 1) & (squeezed.arrival_s < 2))
    bad = write(tmp_path / "bad.csv", "count\n5\n-2.5\n")
    with pytest.raises(TraceError, match="line 3, column count: -2.5, expected a count"):
        parse_spec(f"counts:path={bad},bin=1")


# The genuine files


def test_the_genuine_llm_logs_have_their_known_figures():
    for name, num_requests, rate_qps in (("conv", 19_366, 5.53), ("code", 8_819, 2.57)):
        path = genuine(f"azure_llm_2023/AzureLLMInferenceTrace_{name}.csv.gz")
        trace = parse_spec(f"azure-llm:path={path}")
        assert len(trace) == num_requests
        assert trace.rate_qps == pytest.approx(rate_qps, rel=0.01)


def test_the_genuine_mooncake_log_has_its_known_figures():
    path = genuine("mooncake_conversation/conversation_trace.csv.gz")
    trace = parse_spec(f"mooncake:path={path}")
    assert len(trace) == 12_031
    assert trace.duration_s == pytest.approx(3537, abs=4)


def test_the_genuine_invocations_of_2021_are_read():
    path = genuine("azure_functions_2021/sample_199_invocations.csv")
    assert len(parse_spec(f"azure2021:path={path},classes=func,slo_scale=1")) == 199


@pytest.mark.slow
def test_the_genuine_client_rates_add_up():
    path = genuine("servegen_client_rates/client_windows.csv.gz")
    spec = f"servegen:path={path},model=m-small,start=36000,length=600"
    assert len(parse_spec(spec)) > 1000


def test_the_genuine_functions_have_classes_and_deadlines():
    path = genuine("azure_functions_2019/invocations_500f_day01_min480-959.csv.gz")
    durations = genuine("azure_functions_2019/durations_500f_day01.csv.gz")
    trace = parse_spec(
        f"azure2019:path={path},qps=500,duration=20,durations={durations},classes=trigger"
    )
    assert trace.metadata["slo_missing"] < 50
    assert trace.metadata["num_tenants"] == 7
    assert len(trace) == 10_000


READ_A_PIPE = """
import resource, sys
from traces.spec.spec import parse_spec
def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
parse_spec("poisson:rate=10,duration=1")
before = peak_mb()
trace = parse_spec(f"log:path={sys.argv[1]},time=t")
print(len(trace), peak_mb() - before)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_file_of_any_size_is_read_as_a_stream(tmp_path):
    """A hundred megabytes through a pipe, which can't be read twice or held whole unnoticed."""
    pipe = tmp_path / "wide.csv"
    os.mkfifo(pipe)
    reader = subprocess.Popen(
        [sys.executable, "-c", READ_A_PIPE, str(pipe)], stdout=subprocess.PIPE, text=True
    )
    num_rows, padding = 100_000, "x" * 1000
    with pipe.open("w") as out:
        out.write("t,rest\n")
        for i in range(num_rows):
            out.write(f"{i},{padding}\n")
    said, _ = reader.communicate(timeout=60)
    rows, grown_mb = said.split()
    assert int(rows) == num_rows
    assert float(grown_mb) < 20
