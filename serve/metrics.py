"""Prometheus metrics of one model: how queries end, on which subnet, after how long.

Latency buckets start below a millisecond, because that is where small batches live.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.reply import Reply

LATENCY_BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server, in a registry of its own; one label per model."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._queries = Counter(
            "supernet_queries",
            "Queries by how they ended.",
            ["model", "status", "reason"],
            registry=self._registry,
        )
        self._subnets = Counter(
            "supernet_subnet_queries",
            "Executed queries by subnet.",
            ["model", "subnet"],
            registry=self._registry,
        )
        self._accuracy = Counter(
            "supernet_on_time_accuracy",
            "Sum of profiled accuracy over on-time queries.",
            ["model"],
            registry=self._registry,
        )
        self._depth = Gauge(
            "supernet_queue_depth", "Queries waiting.", ["model"], registry=self._registry
        )
        self._device = Gauge(
            "supernet_device",
            "What the device did and holds: graphs, slices, bytes, times it had no memory.",
            ["model", "what"],
            registry=self._registry,
        )
        self._latency = self._histogram("supernet_latency_seconds", "Arrival to end of execution.")
        self._queue = self._histogram("supernet_queue_seconds", "Arrival to launch.")
        self._execution = self._histogram("supernet_execution_seconds", "Execution of the batch.")
        self._batch = Histogram(
            "supernet_batch_size",
            "Batch size per executed query.",
            ["model"],
            buckets=BATCH_BUCKETS,
            registry=self._registry,
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=LATENCY_BUCKETS_S, registry=self._registry)

    def observe(self, model: str, reply: Reply) -> None:
        """Count the end of one query."""
        outcome = reply.outcome
        # The text of a failure is free: as a label it would make a series per message.
        is_free = outcome.status == "failed" and outcome.reason != "device_failed"
        reason = "execution_failed" if is_free else outcome.reason
        self._queries.labels(model, outcome.status, reason).inc()
        if not reply.is_executed:
            return
        self._subnets.labels(model, outcome.subnet_id).inc()
        self._latency.labels(model).observe(outcome.latency_s)
        self._queue.labels(model).observe(reply.queue_s)
        self._execution.labels(model).observe(reply.execution_s)
        self._batch.labels(model).observe(outcome.batch_size)
        if outcome.status == "on_time":
            self._accuracy.labels(model).inc(outcome.accuracy)

    def set_queue_depth(self, model: str, depth: int) -> None:
        """Set how many queries wait; called when the metrics are read."""
        self._depth.labels(model).set(depth)

    def set_device_counts(self, model: str, counts: Mapping[str, int]) -> None:
        """Set what the executor counted; called when the metrics are read."""
        for what, number in counts.items():
            self._device.labels(model, what).set(number)

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)
