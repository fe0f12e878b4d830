"""OpenTelemetry spans: one per request or stream, with where its time went inside it.

They are written when the request has ended, from times that are known anyway, so a request that is
not sampled costs a look at its `traceparent`. Names, exporter and sampler follow OpenTelemetry's
own environment variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serve.observe.request_record import EndedRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_DEFAULT_SERVICE = "supernet"


class Spans:
    """Writes the spans of entries with a provider's tracer.

    `clock` is the engine's, `unix_clock` tells the time of day; both are read for each request, so
    that a stepped clock moves spans and never stretches them.
    """

    def __init__(
        self,
        provider: TracerProvider,
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
    ) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("supernet.serve")
        self._propagator = TraceContextTextMapPropagator()
        self._clock = clock
        self._unix_clock = unix_clock

    def __call__(self, record: EndedRequest) -> None:
        """Write the spans of one request, as a part of the client's trace where it names one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        offset_s = self._unix_clock() - self._clock()
        span = self._tracer.start_span(
            f"{record.verb} {record.model}",
            context=self._propagator.extract(record.headers),
            kind=SpanKind.SERVER,
            start_time=_ns(record.arrival_s + offset_s),
        )
        if span.is_recording():
            facts = record.facts()
            span.set_attributes({f"supernet.{name}": value for name, value in facts.items()})
            if facts["status"] in ("dropped", "rejected", "failed"):
                span.set_status(Status(StatusCode.ERROR, str(facts.get("reason", ""))))
            inside = set_span_in_context(span)
            for name, start_s, end_s in record.phases():
                part = self._tracer.start_span(
                    name, context=inside, start_time=_ns(start_s + offset_s)
                )
                part.end(_ns(end_s + offset_s))
        span.end(_ns(record.ended_s + offset_s))


def build_spans(
    clock: Callable[[], float],
    unix_clock: Callable[[], float],
    resources: contextlib.ExitStack,
    exporter: Any = None,
) -> Spans | None:
    """Return the writer of spans; None, with a warning that says why, without the packages.

    `exporter` is OTLP over HTTP unless given. What is unsent at the end is sent by `resources`.
    """
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
    except ImportError as error:
        logger.warning("spans are off: %s (pip install 'supernet-serving[otel]')", error)
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", _DEFAULT_SERVICE)
    resource = Resource.create({SERVICE_NAME: name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    resources.callback(provider.shutdown)
    return Spans(provider, clock, unix_clock)


def _ns(time_s: float) -> int:
    return round(time_s * 1e9)
