from __future__ import annotations

import numpy as np
import pytest

from traces.trace import Trace, TraceError


def trace_of(*arrival_s: float, duration_s: float = 10.0, **fields) -> Trace:
    return Trace(arrival_s=np.array(arrival_s), duration_s=duration_s, **fields)


@pytest.mark.parametrize(
    ("arrival_s", "message"),
    [
        ((0.0, 2.0, 1.0), r"arrival_s\[2\] = 1 is before arrival_s\[1\] = 2; .* sorted"),
        ((0.0, float("nan")), r"arrival_s\[1\] = nan must be finite"),
        ((-1.0, 0.0), r"arrival_s\[0\] = -1 must be non-negative"),
        ((0.0, 11.0), r"arrival_s\[1\] = 11 must be at most duration_s 10"),
    ],
)
def test_bad_arrivals_are_refused_by_index(arrival_s, message):
    with pytest.raises(TraceError, match=message):
        trace_of(*arrival_s)


def test_per_query_arrays_must_match_the_arrivals():
    with pytest.raises(TraceError, match="slo_s has 1 values for 2 arrivals"):
        trace_of(0.0, 1.0, slo_s=np.array([0.1]))
    with pytest.raises(TraceError, match=r"slo_s\[1\] = 0 must be finite and above 0"):
        trace_of(0.0, 1.0, slo_s=np.array([0.1, 0.0]))


def test_a_trace_cannot_be_changed_in_place():
    given = np.array([0.0, 1.0])
    trace = Trace(arrival_s=given, duration_s=2.0)
    given[0] = 9.0
    assert trace.arrival_s[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 1.0


def test_rescaling_hits_the_rate_exactly_and_keeps_every_arrival():
    trace = trace_of(0.0, 1.0, 4.0, 9.0)
    faster = trace.rescale_rate(8.0)
    assert (len(faster), faster.duration_s, faster.rate_qps) == (4, 0.5, 8.0)
    np.testing.assert_allclose(faster.arrival_s, [0.0, 0.05, 0.2, 0.45])
    np.testing.assert_allclose(trace.rescale_time(20.0).arrival_s, [0.0, 2.0, 8.0, 18.0])
    assert faster.metadata["transforms"][-1] == "rescale_rate(8 qps)"


def test_windows_partition_the_arrivals():
    trace = trace_of(0.0, 1.0, 4.0, 4.0, 9.0, 10.0, query_class=np.arange(6))
    parts = [trace.window(0.0, 4.0), trace.window(4.0, 10.0)]
    assert [len(p) for p in parts] == [2, 4]
    np.testing.assert_array_equal(parts[1].arrival_s, [0.0, 0.0, 5.0, 6.0])
    np.testing.assert_array_equal(parts[1].query_class, [2, 3, 4, 5])
    with pytest.raises(TraceError, match="not inside the trace"):
        trace.window(4.0, 11.0)


def test_splice_and_merge_conserve_every_query():
    a, b = trace_of(0.0, 9.0, source="a"), trace_of(1.0, 2.0, 3.0, duration_s=5.0, source="b")
    np.testing.assert_array_equal(a.splice(b).arrival_s, [0.0, 9.0, 11.0, 12.0, 13.0])
    np.testing.assert_array_equal(a.merge(b).arrival_s, [0.0, 1.0, 2.0, 3.0, 9.0])
    assert (a.splice(b).duration_s, a.merge(b).duration_s, a.merge(b).source) == (15, 10, "a + b")
    with pytest.raises(TraceError, match="slo_s is given for one of the traces only"):
        a.merge(trace_of(0.0, slo_s=np.array([0.1])))


def test_thinning_keeps_the_expected_part_with_its_deadlines():
    count = 20_000
    trace = trace_of(*np.linspace(0, 10, count), slo_s=np.arange(1.0, count + 1))
    thin = trace.thin(0.25, np.random.default_rng(1))
    assert abs(len(thin) - count / 4) < 4 * (count * 0.25 * 0.75) ** 0.5
    kept = np.searchsorted(trace.arrival_s, thin.arrival_s)
    np.testing.assert_array_equal(thin.slo_s, trace.slo_s[kept])
