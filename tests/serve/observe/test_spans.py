"""OpenTelemetry spans: their tree, their times, the client's trace, and what happens without."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from serve.engine.reply import Reply
from serve.hosts import assemble
from serve.observe.request_record import RequestRecord
from serve.observe.spans import Spans, build_spans
from slackfit.query import Outcome

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ON_TIME = Reply(Outcome(7, "on_time", "", 1.0, 1.1, 1.005, 1.02, "large", 0.9, 2), None, 0.015, 3)
EXPIRED = Reply(Outcome(8, "dropped", "expired", 1.0, 1.1, None, 1.1, None, 0.0, 0))


def entry(*replies: Reply, headers: dict[str, str] | None = None) -> RequestRecord:
    return RequestRecord("tiny", "r-1", None, headers or {}, 1.0, 1.002, 1.025, replies)


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.clear()


@pytest.fixture
def spans(memory: InMemorySpanExporter) -> Spans:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Spans(provider, clock=lambda: 2.0, unix_clock=lambda: 1002.0)


def named(memory: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = memory.get_finished_spans()
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


def times_s(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def test_a_request_holds_door_queue_and_execution_end_to_end(spans: Spans, memory):
    spans(entry(ON_TIME))
    found = named(memory)
    whole = found["infer tiny"]
    assert whole.kind is SpanKind.SERVER
    assert times_s(whole) == pytest.approx((1001.0, 1001.025))
    assert times_s(found["door"]) == pytest.approx((1001.0, 1001.002))
    assert times_s(found["queue"]) == pytest.approx((1001.002, 1001.005))
    assert times_s(found["execution"]) == pytest.approx((1001.005, 1001.02))
    for name in ("door", "queue", "execution"):
        assert found[name].parent is not None
        assert found[name].parent.span_id == whole.context.span_id
    assert whole.attributes is not None
    assert whole.attributes["supernet.subnet"] == "large"
    assert whole.attributes["supernet.request_id"] == "r-1"
    assert whole.status.status_code is StatusCode.UNSET


def test_the_clients_trace_goes_on(spans: Spans, memory):
    spans(entry(ON_TIME, headers=TRACEPARENT))
    whole = named(memory)["infer tiny"]
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert whole.parent.is_remote


def test_a_malformed_traceparent_starts_a_trace_of_its_own(spans: Spans, memory):
    spans(entry(ON_TIME, headers={"traceparent": "00-zz-1"}))
    assert named(memory)["infer tiny"].parent is None


def test_a_dropped_query_is_an_error_that_never_ran(spans: Spans, memory):
    spans(entry(EXPIRED))
    found = named(memory)
    assert set(found) == {"infer tiny", "door", "queue"}
    assert found["infer tiny"].status.status_code is StatusCode.ERROR
    assert found["infer tiny"].status.description == "expired"


def test_a_batch_is_one_execution_however_many_samples_it_served(spans: Spans, memory):
    spans(entry(ON_TIME, ON_TIME))
    assert set(named(memory)) == {"infer tiny", "door", "queue", "execution"}


def test_what_is_not_sampled_writes_nothing(memory):
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    Spans(provider, lambda: 2.0, lambda: 1002.0)(entry(ON_TIME))
    assert memory.get_finished_spans() == ()


def test_spans_reach_the_exporter_from_a_request_over_http(timed_door, serving_door, memory):
    url = "/v2/models/tiny/infer"
    tensor = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}

    async def main() -> None:
        door = timed_door()
        (model,) = door.server.models
        with contextlib.ExitStack() as resources:
            spans = build_spans(model.engine.clock, lambda: 1000.0, resources, memory)
            assert spans is not None
            model._request_observers = [spans]
            async with serving_door(door) as client:
                answer = await client.post(url, json={"inputs": [tensor]}, headers=TRACEPARENT)
                assert answer.status_code == 200

    asyncio.run(main())
    found = named(memory)
    assert set(found) == {"infer tiny", "door", "queue", "execution"}
    assert f"{found['infer tiny'].context.trace_id:032x}" == TRACE
    assert found["infer tiny"].resource.attributes["service.name"] == "supernet"
    starts = [times_s(found[name]) for name in ("door", "queue", "execution")]
    assert [end for _, end in starts[:2]] == [start for start, _ in starts[1:]]


class Collector(BaseHTTPRequestHandler):
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_environment_names_the_collector_and_closing_sends_the_rest(
    monkeypatch: pytest.MonkeyPatch,
):
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        serving = threading.Thread(target=collector.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        try:
            with contextlib.ExitStack() as resources:
                spans = build_spans(lambda: 2.0, lambda: 1002.0, resources)
                assert spans is not None
                spans(entry(ON_TIME))
        finally:
            collector.shutdown()
            serving.join()
    received = b"".join(Collector.bodies)
    for text in (b"infer tiny", b"execution", b"mine"):
        assert text in received


def test_without_the_packages_spans_are_off_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with contextlib.ExitStack() as resources:
        assert build_spans(lambda: 0.0, lambda: 0.0, resources) is None
    assert "spans are off" in caplog.text
    assert "supernet-serving[otel]" in caplog.text


def test_a_failing_watcher_costs_no_answer(timed_door, serving_door, caplog, monkeypatch):
    def broken(_: RequestRecord) -> None:
        raise RuntimeError("the exporter is broken")

    monkeypatch.setattr(assemble, "build_request_observers", lambda *_: [broken])
    tensor = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}

    async def main() -> int:
        door = timed_door()
        async with serving_door(door) as client:
            answer = await client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
            return answer.status_code

    assert asyncio.run(main()) == 200
    assert "broken failed (1 times" in caplog.text
