from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from traces.burstiness import count_moments, counts_per_window, describe, scales_s
from traces.files import write_trace
from traces.generators.arrivals import gamma, poisson
from traces.generators.patterns import mmpp
from traces.trace import Trace

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("window_s", [0.001, 0.01, 0.07, 1.0, 10.0])
def test_counts_in_chunks_are_the_counts(window_s):
    for trace in (mmpp(50.0, 900.0, 2.0, 0.5, 130.0, seed=1), gamma(200.0, 0.0, 130.0)):
        counts = counts_per_window(trace, window_s)
        moments = count_moments(trace, window_s)
        assert moments.num_windows == counts.size
        assert moments.mean == pytest.approx(counts.mean())
        assert moments.variance == pytest.approx(counts.var(), abs=1e-9)


def test_arrivals_on_the_edges_of_windows_fall_one_into_each():
    even = gamma(100.0, 0.0, 60.0)  # every 10 ms, some of them a rounding error before the edge
    assert set(counts_per_window(even, 0.01).tolist()) == {1}
    assert count_moments(even, 0.01).dispersion == pytest.approx(0.0, abs=1e-9)


def test_info_tells_even_from_random_from_bursty():
    even, random, bursty = (
        describe(t)
        for t in (gamma(100.0, 0.0, 200.0), poisson(100.0, 200.0), gamma(100.0, 8.0, 200.0))
    )
    for key in ("0.1", "1"):
        found = [d["index_of_dispersion"][key] for d in (even, random, bursty)]
        assert found[0] < 0.1
        assert found[1] == pytest.approx(1.0, abs=0.4)
        assert found[2] > 3
    assert even["gap_cv"] == pytest.approx(0.0, abs=1e-6)
    assert bursty["gap_cv"] ** 2 == pytest.approx(8.0, rel=0.15)
    assert abs(random["gap_autocorrelation"]) < 0.03
    assert sum(random["rate_over_time"]["qps"]) * random["rate_over_time"]["bin_s"] == (
        pytest.approx(random["num_queries"])
    )


def test_a_slow_switch_shows_in_the_autocorrelation():
    slow = describe(mmpp(50.0, 500.0, 20.0, 20.0, 2000.0, seed=1))["autocorrelation"]
    assert slow["window_s"] == 1.0
    assert slow["lags"]["1"] > 0.8 > slow["lags"]["20"]
    assert abs(describe(poisson(100.0, 500.0))["autocorrelation"]["lags"]["1"]) < 0.15


def test_scales_go_from_a_millisecond_to_an_hour():
    assert scales_s(20 * 3600.0, 20)[0] == 0.001
    assert scales_s(20 * 3600.0, 20)[-1] == 3600.0
    assert scales_s(2.0, 20)[-1] == 0.1


def test_one_arrival_and_none_are_described():
    lone = describe(gamma(1.0, 0.0, 1.5))
    assert (lone["num_queries"], lone["gap_cv2"]) == (1, None)
    assert describe(poisson(1e-9, 1.0))["peak_to_mean"] is None


@pytest.mark.slow
def test_ten_million_arrivals_are_loaded_and_described_in_seconds(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(path, gamma(1000.0, 4.0, 10_000.0, seed=1))
    code = (
        "import re, sys, time\n"
        "from pathlib import Path\n"
        "from traces.burstiness import describe\n"
        "from traces.files import read_trace\n"
        "at = [time.perf_counter()]\n"
        f"trace = read_trace({str(path)!r}); at.append(time.perf_counter())\n"
        "describe(trace); at.append(time.perf_counter())\n"
        "status = Path('/proc/self/status').read_text()\n"  # getrusage counts the parent's too
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024\n"
        "print(at[1] - at[0], at[2] - at[1], peak, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    load_s, info_s, peak_mib, has_torch = done.stdout.split()
    assert float(load_s) < 3
    assert float(info_s) < 5
    assert float(peak_mib) < 400
    assert has_torch == "False"


def test_reading_parquet_holds_no_second_copy(tmp_path):
    path = tmp_path / "t.parquet"
    trace = gamma(1000.0, 1.0, 100.0, seed=1)
    write_trace(path, trace)
    from traces.files import read_trace

    read = read_trace(path)
    np.testing.assert_array_equal(read.arrival_s, trace.arrival_s)
    assert not read.arrival_s.flags.writeable


def test_the_peak_counts_the_last_second_though_the_end_cuts_it_off():
    burst = Trace(arrival_s=np.concatenate([np.arange(10.0), np.full(50, 10.2)]), duration_s=10.4)
    assert describe(burst)["peak_qps"] == 50.0
    short = Trace(arrival_s=np.full(3, 0.25), duration_s=0.5)
    assert describe(short)["peak_qps"] == 6.0
