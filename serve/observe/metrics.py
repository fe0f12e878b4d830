"""`Metrics`: what a server tells Prometheus; `instruments.py`, `stream_metrics.py` list it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve.engine.reply import Reply
from serve.engine.served_engine import ServedEngine
from serve.engine.streams.stream_engine import StreamEngine
from serve.observe.instruments import Instruments
from serve.observe.recent_outcomes import RecentOutcomes
from serve.observe.stream_metrics import StreamInstruments, StreamMetrics
from serve.observe.vllm_names import VllmNames

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


_CACHE_EVENTS = {"hits": "hit", "misses": "miss", "loads": "load", "evictions": "eviction"}


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instruments = Instruments(self.registry)
        self._models: dict[str, ModelMetrics] = {}
        self._stream_instruments: StreamInstruments | None = None
        self._streams: dict[str, StreamMetrics] = {}
        self._aliases: CollectorRegistry | None = None

    def of(self, model: str) -> ModelMetrics:
        """Return the metrics of the model with that name."""
        if model not in self._models:
            self._models[model] = ModelMetrics(self._instruments, model)
        return self._models[model]

    def of_streams(self, model: str) -> StreamMetrics:
        """Return the metrics of the decoder with that name; the first one brings their names."""
        if self._stream_instruments is None:
            self._stream_instruments = StreamInstruments(self.registry)
            self._aliases = CollectorRegistry()
            self._aliases.register(VllmNames(self.registry))
        if model not in self._streams:
            self._streams[model] = StreamMetrics(self._stream_instruments, model)
        return self._streams[model]

    def refused(self, door: str, reason: str, tenant: str = "") -> None:
        """Count a request that got an error at the `http` or the `grpc` door."""
        self._instruments.refused.labels(door, reason, tenant).inc()

    def refresh_doors(self, loop_lag_s: float, inflight_bytes: int) -> None:
        """Set the state of the doors; called when the metrics are read."""
        self._instruments.lag.set(loop_lag_s)
        self._instruments.inflight.set(inflight_bytes)

    def refresh(self, engines: Iterable[tuple[str, ServedEngine]]) -> None:
        """Set what is a state and not an event, by model; called when the metrics are read."""
        for name, engine in engines:
            self.of(name).refresh(engine)

    def refresh_streams(self, engines: Iterable[tuple[str, StreamEngine]]) -> None:
        """Set what is a state of decoders, by model; called when the metrics are read."""
        for name, engine in engines:
            self.of_streams(name).refresh(engine)

    def render(self, names: Collection[str] | None = None) -> bytes:
        """Return the exposition text, of all metrics or of those with these names."""
        if names is None:
            own = generate_latest(self.registry)
            return own if self._aliases is None else own + generate_latest(self._aliases)
        return generate_latest(_Selected(self.registry, names))


class _Selected(Collector):
    """Some of a registry's metrics, by the names of their families."""

    def __init__(self, registry: CollectorRegistry, names: Collection[str]) -> None:
        self._registry = registry
        self._names = frozenset(names)

    def collect(self) -> Iterable[Metric]:
        return [metric for metric in self._registry.collect() if metric.name in self._names]


class ModelMetrics:
    """The metrics of one model; its children are kept, because looking them up costs more.

    `observe` is called on the thread that delivers replies, `decided` on the device thread.
    """

    def __init__(self, instruments: Instruments, model: str) -> None:
        self._instruments = instruments
        self._name = model
        self._queries = functools.cache(functools.partial(instruments.queries.labels, model))
        self._subnets = functools.cache(functools.partial(instruments.subnets.labels, model))
        self._batches = functools.cache(functools.partial(instruments.batches.labels, model))
        self._tenants = functools.cache(functools.partial(instruments.tenant_queries.labels, model))
        self._tenant_accuracy = functools.cache(
            functools.partial(instruments.tenant_accuracy.labels, model)
        )
        self._accuracy = instruments.accuracy.labels(model)
        self._busy = instruments.busy.labels(model)
        self._latency = instruments.latency.labels(model)
        self._queue = instruments.queue.labels(model)
        self._slack = instruments.slack.labels(model)
        self._lateness = instruments.lateness.labels(model)
        self._execution = instruments.execution.labels(model)
        self._batch_size = instruments.batch_size.labels(model)
        self._decision = instruments.decision.labels(model)
        self._recent = RecentOutcomes()
        self._last_batch_id: int | None = None
        self._last_counts: Mapping[str, int] = {}

    def observe(self, reply: Reply) -> None:
        """Count the end of one query, as many as it has samples.

        Those of one batch come one after the other.
        """
        outcome = reply.outcome
        status, samples = outcome.status, outcome.samples
        self._recent.observe(outcome)
        # The text of a failure is free: as a label it would make a series per message.
        is_free = status == "failed" and outcome.reason != "device_failed"
        self._queries(status, "execution_failed" if is_free else outcome.reason).value += samples
        self._tenants(reply.tenant, status).value += samples
        if not reply.is_executed:
            return
        self._subnets(outcome.subnet_id).value += samples
        self._latency.observe(outcome.latency_s, samples)
        self._queue.observe(reply.queue_s, samples)
        if status == "on_time":
            self._slack.observe(reply.slack_s, samples)
            self._accuracy.value += outcome.accuracy * samples
            self._tenant_accuracy(reply.tenant).value += outcome.accuracy * samples
        else:
            self._lateness.observe(-reply.slack_s, samples)
        if reply.batch_id != self._last_batch_id:
            self._last_batch_id = reply.batch_id
            self._batches(outcome.subnet_id).inc()
            self._busy.inc(reply.execution_s)
            self._execution.observe(reply.execution_s)
            self._batch_size.observe(outcome.batch_size)

    def decided(self, duration_s: float) -> None:
        """Note how long the policy took to compose a batch."""
        self._decision.observe(duration_s)

    def refresh(self, engine: ServedEngine) -> None:
        """Set what is a state and not an event: depth, attainment, cache, correction."""
        instruments, name, now_s = self._instruments, self._name, engine.clock()
        status = engine.status()
        instruments.depth.labels(name).set(status.queue_depth)
        instruments.running.labels(name).set(status.num_running)
        instruments.ready.labels(name).set(status.state == "ready")
        instruments.fallback.labels(name).set(bool(status.fallback))
        instruments.factor.labels(name).set(status.latency_factor or 1.0)
        instruments.attainment.labels(name).set(self._recent.attainment(now_s))
        instruments.served.labels(name).set(self._recent.accuracy(now_s))
        self._tell_device(engine.device_counts())

    def _tell_device(self, counts: Mapping[str, int]) -> None:
        last, self._last_counts = self._last_counts, counts
        for what, number in counts.items():
            if what in _CACHE_EVENTS:
                event = self._instruments.cache.labels(self._name, _CACHE_EVENTS[what])
                event.inc(number - last.get(what, 0))
            elif what == "held_bytes":
                self._instruments.cache_bytes.labels(self._name).set(number)
            else:
                self._instruments.device.labels(self._name, what).set(number)
