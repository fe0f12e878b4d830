from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from traces.azure import azure2019, read_counts, squeeze
from traces.azure_shape import MAX_TO_MEAN, MIN_TO_MEAN, azure2019_shape, minute_shape
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
