"""Streams in the log and as spans: what is said of one, and that the door has it said."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from serve.observe.logs import QueryLog
from serve.observe.stream_record import StreamRecord
from slackfit.streams.stream_query import StreamOutcome, StreamQuery

QUERY = StreamQuery(7, 10.0, 20, 4, 11.0, 0.25, tenant="gold", cached_tokens=8)
WHOLE = StreamOutcome(
    7, "on_time", "", QUERY, 10.25, 12.0, (10.5, 10.75, 12.0), ("e0.5", "e1", "e1"),
    (0.6, 0.9, 0.9), missed=0, due=3, preemptions=1,
)  # fmt: skip


def record(outcome: StreamOutcome = WHOLE) -> StreamRecord:
    return StreamRecord("lm", "r-1", {}, 10.125, outcome)


def test_what_is_said_of_a_stream():
    assert record().facts() == {
        "model": "lm", "request_id": "r-1", "tenant": "gold", "query_id": 7, "status": "on_time",
        "prompt_tokens": 20, "cached_tokens": 8, "tokens": 3, "widths": "e0.5:1,e1:2",
        "quality": 0.8, "fluidity": 1.0, "ttft_ms": 500.0, "queue_ms": 250.0, "preemptions": 1,
        "latency_ms": 2000.0,
    }  # fmt: skip


def test_where_its_time_went():
    assert record().phases() == [
        ("door", 10.0, 10.125),
        ("queue", 10.125, 10.25),
        ("prefill", 10.25, 10.5),
        ("decode", 10.5, 12.0),
    ]
    one = WHOLE._replace(output_s=(12.0,), subnet_ids=("e1",), qualities=(0.9,))
    assert [name for name, _, _ in record(one).phases()] == ["door", "queue", "prefill"]
    never = WHOLE._replace(status="dropped", reason="expired", start_s=None, output_s=())
    assert record(never).phases()[1:] == [("queue", 10.125, 12.0)]


@pytest.mark.parametrize(("what", "lines"), [("none", 0), ("misses", 1), ("all", 2)])
def test_the_log_takes_streams_as_it_takes_queries(
    what: Any, lines: int, caplog: pytest.LogCaptureFixture
):
    log = QueryLog(what, 10.0, lambda: 0.0)
    with caplog.at_level(logging.INFO, "serve.queries"):
        log(record())
        log(record(WHOLE._replace(status="late")))
    assert len(caplog.records) == lines
    if lines:
        assert caplog.records[-1].getMessage() == "stream late"


def test_spans_of_a_stream():
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from serve.observe.spans import Spans

    memory = InMemorySpanExporter()
    provider = trace.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    Spans(provider, lambda: 20.0, lambda: 1020.0)(record())
    spans = {span.name: span for span in memory.get_finished_spans()}
    assert set(spans) == {"stream lm", "door", "queue", "prefill", "decode"}
    assert spans["stream lm"].attributes is not None
    assert spans["stream lm"].attributes["supernet.widths"] == "e0.5:1,e1:2"
    assert spans["decode"].start_time == 1010.5 * 1e9
