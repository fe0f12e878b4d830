"""The report of streams: its own figures, and that of batches where each stream has one output."""

from __future__ import annotations

from typing import Any

import pytest

from slackfit.metrics import summarize
from slackfit.query import Outcome
from slackfit.streams.stream_metrics import as_outcome, summarize_streams
from slackfit.streams.stream_query import StreamOutcome, StreamQuery


def stream(i: int, at_s: float, output_s: list[float], ids: list[str], **more: Any):
    quality = {"e1": 1.0, "e0.5": 0.5}
    missed, due, on_time = more.pop("counted", (0, len(output_s), 0.0))
    return StreamOutcome(
        i,
        more.pop("status", "on_time"),
        more.pop("reason", ""),
        StreamQuery(i, at_s, 10, 9, at_s + 0.5, 0.1),
        at_s,
        output_s[-1] if output_s else at_s,
        tuple(output_s),
        tuple(ids),
        tuple(quality[name] for name in ids),
        missed,
        due,
        on_time,
        **more,
    )


def report_of(outcomes: list[StreamOutcome]) -> dict[str, Any]:
    return summarize_streams(
        outcomes, policy="p", quality_kind="agreement", duration_s=10.0, seed=0, profile="f"
    )


def test_the_figures_of_streams():
    outcomes = [
        stream(0, 0.0, [0.4, 0.5, 0.8], ["e1", "e1", "e0.5"], counted=(1, 3, 2.0), status="late"),
        stream(1, 1.0, [1.2, 1.3], ["e0.5", "e0.5"], counted=(0, 2, 1.0), preemptions=2),
        stream(2, 2.0, [], [], status="rejected", reason="too_long"),
        stream(3, 3.0, [3.3], ["e1"], status="dropped", reason="expired", relegated=True),
    ]
    report = report_of(outcomes)
    assert report["slo_attainment"] == 0.25
    assert report["outcomes"] == {
        "on_time": 1, "late": 1, "dropped": 1, "rejected": 1, "failed": 0,
    }  # fmt: skip
    assert report["reasons"] == {"expired": 1, "too_long": 1}
    assert report["mean_serving_accuracy"] == 0.5  # of the one on time
    streams = report["streams"]
    assert streams["fluidity"] == pytest.approx((2 / 3 + 1.0) / 4)
    assert streams["weighted_fluidity"] == pytest.approx((2.0 / 3 + 0.5) / 4)
    assert streams["mean_quality"] == pytest.approx((3 * 1.0 + 3 * 0.5) / 6)
    assert streams["quality_kind"] == "agreement"
    assert (streams["outputs"], streams["outputs_per_s"]) == (6, 0.6)
    assert (streams["preemptions"], streams["relegated"]) == (2, 1)
    assert streams["ttft_ms"]["max"] == pytest.approx(400.0)
    assert streams["gap_ms"]["max"] == pytest.approx(300.0)
    assert report["subnets"] == {
        "e0.5": {"queries": 3, "batches": 3, "accuracy": 0.5},
        "e1": {"queries": 3, "batches": 3, "accuracy": 1.0},
    }
    assert sum(streams["outputs_over_time"]["e0.5"]) == 3
    assert list(streams["outputs_over_time"]) == ["e0.5", "e1"]
    assert sum(report["series"]["subnets"]["e1"]) == 1  # of streams: most of its outputs


def test_nothing_that_ran_is_no_error():
    report = report_of([stream(0, 0.0, [], [], status="rejected", reason="draining")])
    assert report["streams"]["gap_ms"] == {"p50": None, "p95": None, "p99": None, "max": None}
    assert report["streams"]["fluidity"] == report["streams"]["mean_quality"] == 0.0


def test_streams_of_one_output_have_the_report_of_queries():
    outcomes = [
        stream(0, 0.0, [0.4], ["e1"], counted=(0, 1, 1.0)),
        stream(1, 1.0, [1.7], ["e0.5"], counted=(3, 3, 0.0), status="late"),
    ]
    queries = [
        Outcome(0, "on_time", "", 0.0, 0.5, 0.0, 0.4, "e1", 1.0, 1, 0),
        Outcome(1, "late", "", 1.0, 1.5, 1.0, 1.7, "e0.5", 0.5, 1, 0),
    ]
    assert [as_outcome(outcome) for outcome in outcomes] == queries
    streams = report_of(outcomes)
    batches = summarize(queries, policy="p", slo_s=0.5, duration_s=10.0, seed=0, profile="f")
    same = [key for key in batches if key not in ("batch_sizes", "series")]
    assert {key: streams[key] for key in same} == {key: batches[key] for key in same}
    assert streams["streams"]["fluidity"] == batches["slo_attainment"]
