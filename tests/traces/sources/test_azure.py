from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from traces.generators.azure_shape import MAX_TO_MEAN, MIN_TO_MEAN, azure2019_shape, minute_shape
from traces.sources.azure import Choice, read_counts, read_totals
from traces.sources.azure2019 import azure2019
from traces.sources.counts import squeeze
from traces.trace import TraceError

GENUINE = "azure_functions_2019/invocations_500f_day01_min480-959.csv.gz"
COUNTS = np.array([[0, 5, 2, 0, 9], [100, 50, 75, 25, 60], [1, 0, 0, 0, 0]])


@pytest.fixture
def counts_file(tmp_path) -> Path:
    """Three made-up functions over minutes 480 to 484."""
    path = tmp_path / "counts.csv"
    rows = [f"o,a,f{i},http,{','.join(map(str, row))}" for i, row in enumerate(COUNTS)]
    header = "HashOwner,HashApp,HashFunction,Trigger,480,481,482,483,484"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_counts_are_read_plain_and_compressed(counts_file):
    packed = counts_file.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(counts_file.read_bytes()))
    for path in (counts_file, packed):
        counts = read_counts(path)
        np.testing.assert_array_equal(counts.counts, COUNTS)
        assert counts.first_minute == 480
        assert counts.functions[1] == ("o", "a", "f1", "http")


def test_busiest_functions_are_chosen_by_sum(counts_file):
    counts = read_counts(counts_file)
    assert [f[2] for f in counts.busiest(2).functions] == ["f0", "f1"]
    np.testing.assert_array_equal(counts.busiest(1).per_minute, COUNTS[1])
    with pytest.raises(TraceError, match="top must be 1 to 3"):
        counts.busiest(4)


@pytest.mark.parametrize(
    ("line", "new", "message"),
    [
        (2, "o,a,f,http,1,2,3,4", r"line 3: 8 columns, expected 9"),
        (1, "o,a,f,http,1,2,x,4,5", r"line 2, column 7: 'x' is not a count"),
        (1, "o,a,f,http,1,2,-3,4,5", r"line 2, column 7: '-3' is not a count"),
        (1, "o,a,f,http,1,2,,4,5", r"line 2, column 7: '' is not a count"),
        (0, "HashOwner,HashApp,HashFunction,480,481", "line 1: header .* is not that of a counts"),
        (0, "HashOwner,HashApp,HashFunction,Trigger,480,482", "consecutive minute numbers"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(counts_file, line, new, message):
    lines = counts_file.read_text(encoding="utf-8").splitlines()
    lines[line] = new
    counts_file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(TraceError, match=message) as caught:
        read_counts(counts_file)
    assert str(counts_file) in str(caught.value)


@pytest.mark.parametrize("placement", ["uniform", "poisson"])
def test_squeeze_conserves_the_shape_and_hits_the_mean_rate(placement):
    weights = np.random.default_rng(0).integers(0, 200, 480)
    trace = squeeze(weights, rate_qps=6400.0, duration_s=30.0, placement=placement, seed=1)
    assert trace.rate_qps == pytest.approx(6400.0, rel=0.005)
    got = np.histogram(trace.arrival_s, bins=480, range=(0, 30.0))[0]
    wanted = weights / weights.sum() * 6400 * 30
    # Rounding moves a bin by at most one arrival; Poisson counts scatter by their square root.
    allowed = 1.0 if placement == "uniform" else 4.5 * np.sqrt(wanted) + 1
    assert (np.abs(got - wanted) <= allowed).all()


def test_squeeze_of_a_small_rate_still_hits_the_mean():
    trace = squeeze(COUNTS.sum(axis=0), rate_qps=7.0, duration_s=10.0)
    assert len(trace) == 70


def test_azure2019_says_what_is_genuine_and_what_is_not(counts_file):
    trace = azure2019(counts_file, 50.0, 4.0, top=2, seed=3)
    assert trace.metadata["invocations"] == COUNTS[:2].sum()
    assert trace.metadata["synthetic"] is False
    assert "inside each minute" in trace.metadata["synthetic_part"]
    assert "CC-BY" in trace.licence
    again = azure2019(counts_file, 50.0, 4.0, top=2, seed=3)
    np.testing.assert_array_equal(trace.arrival_s, again.arrival_s)


@pytest.mark.parametrize("seed", range(5))
def test_the_shape_generator_has_the_published_extremes(seed):
    shape = minute_shape(seed)
    assert shape.mean() == pytest.approx(1.0)
    assert shape.min() == pytest.approx(MIN_TO_MEAN, rel=0.01)
    assert shape.max() == pytest.approx(MAX_TO_MEAN, rel=0.01)
    assert shape.std() == pytest.approx(0.10, abs=0.015)


def test_the_shape_generator_says_that_it_is_synthetic():
    trace = azure2019_shape(6400.0, 10.0, seed=1)
    assert trace.metadata["synthetic"] is True
    assert trace.rate_qps == pytest.approx(6400.0, rel=4 / 64_000**0.5)


def test_the_genuine_file_has_its_known_totals():
    folder = os.environ.get("SUPERNET_DATA_DIR")
    if not folder or not (Path(folder) / GENUINE).exists():
        pytest.skip(f"needs {GENUINE} under SUPERNET_DATA_DIR")
    counts = read_counts(Path(folder) / GENUINE)
    per_second = counts.per_minute / 60
    assert counts.counts.shape == (500, 480)
    assert counts.per_minute.sum() == 3_037_902
    assert counts.first_minute == 480
    rates = (per_second.min(), per_second.mean(), per_second.max())
    assert [round(r, 1) for r in rates] == [50.2, 105.5, 126.7]


@pytest.fixture
def days(tmp_path, counts_file) -> Path:
    """Two daily files; the second lacks one function and has one of its own."""
    folder = tmp_path / "days"
    folder.mkdir()
    header = "HashOwner,HashApp,HashFunction,Trigger,1,2"
    first = "o,a,f0,http,1,2\no,a,f1,timer,5,5\n"
    second = "o,a,f1,timer,7,0\no,b,f2,queue,0,100\n"
    for day, rows in (("d01", first), ("d02", second)):
        name = folder / f"invocations_per_function_md.anon.{day}.csv"
        name.write_text(f"{header}\n{rows}", encoding="utf-8")
    return folder


def test_days_lie_behind_each_other(days):
    counts = read_counts(days)
    assert [f[2] for f in counts.functions] == ["f0", "f1", "f2"]
    np.testing.assert_array_equal(counts.counts, [[1, 2, 0, 0], [5, 5, 7, 0], [0, 0, 0, 100]])
    np.testing.assert_array_equal(read_totals(days).per_minute, counts.per_minute)


@pytest.mark.parametrize(
    ("choice", "functions"),
    [
        (Choice(trigger="timer"), ["f1"]),
        (Choice(function="f2"), ["f2"]),
        (Choice(top=2), ["f1", "f2"]),
        (Choice(share=0.8), ["f2"]),
        (Choice(share=1.0), ["f0", "f1", "f2"]),
    ],
)
def test_functions_are_chosen_over_all_days(days, choice, functions):
    counts = read_counts(days, choice)
    assert [f[2] for f in counts.functions] == functions
    np.testing.assert_array_equal(read_totals(days, choice).per_minute, counts.per_minute)


def test_a_choice_that_nothing_fulfils_says_what_there_is(counts_file, tmp_path):
    with pytest.raises(TraceError, match="no function fits timer; the triggers are http"):
        read_counts(counts_file, Choice(trigger="timer"))
    with pytest.raises(TraceError, match="top or share, not both"):
        read_counts(counts_file, Choice(top=1, share=0.5))
    with pytest.raises(TraceError, match="holds no invocations"):
        read_counts(tmp_path.parent / tmp_path.name / "..", Choice())


def test_functions_become_tenants_with_deadlines(days):
    spec = {"rate_qps": 3000.0, "duration_s": 4.0, "classes": "trigger", "seed": 1}
    trace = azure2019(days, **spec, slos="http:50/timer:100/*:200")
    assert trace.metadata["tenants"] == {"0": "http", "1": "timer", "2": "queue"}
    assert trace.query_class is None  # who sends a query says nothing about its priority
    shares = np.bincount(trace.tenant.codes) / len(trace)
    np.testing.assert_allclose(shares, np.array([3, 17, 100]) / 120, atol=0.01)
    np.testing.assert_allclose(trace.slo_s, np.array([0.05, 0.1, 0.2])[trace.tenant.codes])
    # Each tenant keeps its own shape: queue calls come in the last minute only.
    assert trace.arrival_s[trace.tenant.codes == 2].min() >= 3.0
    ranked = azure2019(days, **spec, priorities="queue:2/*:0")
    np.testing.assert_array_equal(ranked.query_class, np.where(trace.tenant.codes == 2, 2, 0))
    with pytest.raises(TraceError, match="priorities needs classes"):
        azure2019(days, 3000.0, 4.0, priorities="*:1")
    with pytest.raises(TraceError, match="names no SLO for tenant 'queue'"):
        azure2019(days, **spec, slos="http:50/timer:100")
    with pytest.raises(TraceError, match="'x' is not NAME:MILLISECONDS"):
        azure2019(days, **spec, slos="x")


def test_durations_become_deadlines(days, tmp_path):
    durations = tmp_path / "durations.csv"
    durations.write_text("HashFunction,Average\nf0,20\nf2,0\nf9,1\n", encoding="utf-8")
    trace = azure2019(days, 3000.0, 4.0, durations=durations, slo_scale=2.0)
    # f1 is missing and takes the median of the others; an average of 0 ms becomes 1 ms.
    assert set(np.round(trace.slo_s, 6)) == {0.04, 0.02, 0.001}
    assert trace.metadata["slo_missing"] == 1


@pytest.mark.parametrize("cv2", [0.0, 0.25, 1.0, 6.0])
def test_gamma_placement_keeps_the_shape_the_total_and_the_cv(cv2):
    trace = squeeze(
        np.full(480, 3), rate_qps=500.0, duration_s=120.0, placement="gamma", cv2=cv2, seed=3
    )
    assert len(trace) == 60_000
    gaps = np.diff(trace.arrival_s)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, rel=0.06, abs=1e-6)
    with pytest.raises(TraceError, match="cv2 goes with placement=gamma"):
        squeeze([1, 2], rate_qps=5.0, duration_s=1.0, placement="gamma")


def test_the_length_and_the_rate_are_the_traces_own(days):
    trace = azure2019(days)
    counts = read_counts(days).per_minute
    assert trace.duration_s == 60.0 * counts.size
    found = np.histogram(trace.arrival_s, np.arange(counts.size + 1) * 60.0)[0]
    np.testing.assert_array_equal(found, counts)
    assert azure2019(days, duration_s=6.0).rate_qps == pytest.approx(counts.sum() / 6.0)


HEADER = "HashOwner,HashApp,HashFunction,Trigger,1,2\n"


def folder_of(path: Path, names: dict[str, int]) -> Path:
    """A folder of daily files, each with one function called so often in its first minute."""
    path.mkdir()
    for name, count in names.items():
        data = f"{HEADER}o,a,f,http,{count},0\n".encode()
        (path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_days_are_read_in_order_and_each_once(tmp_path):
    names = {"invocations.d10.csv": 10, "invocations.d2.csv": 2, "invocations.d2.csv.gz": 2}
    names |= {"invocations.d9.csv": 9, "invocations.d9.csv.bak": 99, ".invocations.d1.csv": 1}
    counts = read_counts(folder_of(tmp_path / "days", names))
    np.testing.assert_array_equal(counts.per_minute, [2, 0, 9, 0, 10, 0])
    assert counts.files == ("invocations.d2.csv", "invocations.d9.csv", "invocations.d10.csv")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("invocations.d02 (1).csv", r"day 2 is there twice, .*d02 \(1\)\.csv"),
        ("invocations-copy.csv", "the day of invocations-copy.csv is not known"),
    ],
)
def test_a_day_is_not_counted_twice_because_of_its_name(tmp_path, other, message):
    folder = folder_of(tmp_path / "days", {"invocations.d02.csv": 1, other: 1})
    with pytest.raises(TraceError, match=message):
        read_counts(folder)


def test_all_functions_together_are_counted_beyond_32_bit(tmp_path):
    """Five functions of 999,999,999 calls a minute: their sum had wrapped around to 705,032,699."""
    folder = tmp_path / "days"
    folder.mkdir()
    rows = "".join(f"o,a,f{i},http,999999999,1\n" for i in range(5))
    for day in ("d01", "d02"):
        (folder / f"invocations.{day}.csv").write_text(HEADER + rows, encoding="utf-8")
    np.testing.assert_array_equal(read_totals(folder).per_minute, [4_999_999_995, 5] * 2)
    trace = azure2019(folder, 1000.0, 4.0)
    assert trace.metadata["invocations"] == 2 * 5_000_000_000


def test_blank_lines_at_the_end_are_no_functions(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}o,a,f,http,1,2,\n\n  \n,,,,,\n", encoding="utf-8")
    np.testing.assert_array_equal(read_counts(path).counts, [[1, 2]])
