"""`Instruments`: every metric that a server has, by its name, help text, labels and buckets.

Latency buckets start below a millisecond, because that is where small batches live. No bucket is
negative (Ray allows none): a query has either slack left or is late. docs/serving.md lists them
all, and a test holds that list against this file.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from serve.observe.tallies import TallyCounter, TallyHistogram

LATENCY_BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0,
)  # fmt: skip
DECISION_BUCKETS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Instruments:
    """The metrics in one registry; all but those of the doors have the label `model`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.queries = counter("queries", "Queries by how they ended.", "status", "reason")
        self.subnets = counter("subnet_queries", "Executed queries by subnet.", "subnet")
        self.batches = counter("batches", "Executed batches by subnet.", "subnet")
        self.accuracy = counter(
            "on_time_accuracy", "Sum of profiled accuracy over on-time queries."
        )
        self.busy = counter("busy_seconds", "Seconds that the device executed.")
        self.cache = counter("cache_events", "What happened to resident graphs or slices.", "event")
        self.latency = histogram("latency_seconds", "Arrival to end of execution.")
        self.queue = histogram("queue_seconds", "Arrival to launch.")
        self.slack = histogram("slack_seconds", "What was left when an answer was on time.")
        self.lateness = histogram("lateness_seconds", "Past the deadline when it was late.")
        self.execution = histogram("execution_seconds", "Execution, one count per batch.")
        self.batch_size = histogram("batch_size", "Queries, one count per batch.", BATCH_BUCKETS)
        self.decision = histogram(
            "decision_seconds", "The policy's decision, one count per batch.", DECISION_BUCKETS_S
        )
        self.depth = gauge("queue_depth", "Queries waiting.")
        self.running = gauge("running_batches", "Batches on the device.")
        self.ready = gauge("ready", "1 while queries are taken, else 0.")
        self.attainment = gauge("recent_attainment", "On-time share of the last ten seconds.")
        self.served = gauge("recent_accuracy", "Mean accuracy of those on time in that time.")
        self.factor = gauge("latency_factor", "Measured over profiled latency, corrected online.")
        self.cache_bytes = gauge("cache_bytes", "Bytes of resident graphs or slices.")
        self.device = gauge(
            "device",
            "What the executor did and holds: graphs, slices, times without memory.",
            "what",
        )
        self.refused = TallyCounter(
            "supernet_refused_requests",
            "Requests answered with an error, by door, reason and tenant.",
            ("door", "reason", "tenant"),
            registry,
        )
        self.tenant_queries = counter(
            "tenant_queries", "Queries by tenant and how they ended.", "tenant", "status"
        )
        self.tenant_accuracy = counter(
            "tenant_on_time_accuracy", "As on_time_accuracy, by tenant.", "tenant"
        )
        self.fallback = gauge("fallback", "1 while another policy serves than the one that is set.")
        self.lag = Gauge(
            "supernet_loop_lag_seconds",
            "The longest that the doors' event loop kept anything waiting in ten seconds.",
            registry=registry,
        )
        self.inflight = Gauge(
            "supernet_inflight_bytes",
            "Bytes of requests from arrival to answer.",
            registry=registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> TallyCounter:
        return TallyCounter(f"supernet_{name}", text, ("model", *labels), self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"supernet_{name}", text, ["model", *labels], registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: Iterable[float] = LATENCY_BUCKETS_S
    ) -> TallyHistogram:
        bounds = tuple(buckets)
        return TallyHistogram(f"supernet_{name}", text, ("model",), bounds, self._registry)
