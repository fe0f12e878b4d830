"""`StreamMetrics`: what a server of streams tells Prometheus, by model.

Times are the engine's stamps: what fluidity is judged by. A stream's outputs are counted when it
ends, iterations as they end.
"""

from __future__ import annotations

from collections import Counter as CountOf
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.engine.streams.prefix_cache import PrefixCounts
from serve.engine.streams.stream_engine import StreamEngine
from slackfit.streams.stream_query import Step, StreamOutcome

_MODEL = ("model",)
_FLUIDITY = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_DECISION_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class StreamInstruments:
    """Every metric of streams, once in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"supernet_stream_{name}", meaning, _MODEL + labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            name = f"supernet_stream_{name}"
            return Histogram(name, meaning, _MODEL, registry=registry, buckets=buckets)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"supernet_stream_{name}", meaning, _MODEL, registry=registry)

        self.ended = counter("ended", "Streams by how they ended.", "outcome", "reason")
        self.tenants = counter("tenant_ended", "The same by tenant.", "tenant", "outcome")
        self.outputs = counter("outputs", "Outputs by the width that computed them.", "subnet")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens computed.")
        self.iterations = counter("iterations", "Iterations by width.", "subnet")
        self.preemptions = counter("preemptions", "Streams that gave up their memory.")
        self.relegated = counter("relegated", "Streams that ended after they had stood back.")
        self.fluidity = histogram("fluidity", "Share of periods not missed.", _FLUIDITY)
        self.weighted = histogram("weighted_fluidity", "The same, by quality.", _FLUIDITY)
        self.first = histogram("first_output_seconds", "Arrival to the first output.", _SECONDS)
        self.gap = histogram("gap_seconds", "Between two outputs of a stream.", _SECONDS)
        self.iteration = histogram("iteration_seconds", "What iterations took.", _SECONDS)
        self.decision = histogram("decision_seconds", "Choosing one.", _DECISION_SECONDS)
        self.finished = counter("finished", "Streams by finish reason, as OpenAI's.", "finish")
        self.prefix_queried = counter("prefix_queried_tokens", "Prompt tokens that were looked up.")
        self.prefix_hit = counter("prefix_hit_tokens", "Those that were computed already.")
        self.whole = histogram("seconds", "Arrival to the last output.", _SECONDS)
        self.queue = histogram("queue_seconds", "Arrival to the prompt's first chunk.", _SECONDS)
        self.prefill = histogram("prefill_seconds", "From there to the first output.", _SECONDS)
        self.decode = histogram("decode_seconds", "First output to the last.", _SECONDS)
        self.period = histogram("period_seconds", "Mean gap of a stream.", _SECONDS)
        self.tokens = histogram("iteration_tokens", "Tokens of an iteration.", _TOKENS)
        self.ready = gauge("ready", "1 while streams are taken, else 0.")
        self.running = gauge("running", "Streams that hold a place.")
        self.waiting = gauge("waiting", "Streams that hold none yet.")
        self.kv = gauge("kv_share", "Share of the memory for keys and values that is held.")


class StreamMetrics:
    """The metrics of one model's streams.

    `observe` is a stream engine's observer, on the thread that delivers; `stepped` its `on_step`,
    on the device thread.
    """

    def __init__(self, instruments: StreamInstruments, model: str) -> None:
        self._of = instruments
        self._model = model
        self._first = instruments.first.labels(model)
        self._gap = instruments.gap.labels(model)
        self._fluidity = instruments.fluidity.labels(model)
        self._weighted = instruments.weighted.labels(model)
        self._iteration = instruments.iteration.labels(model)
        self._decision = instruments.decision.labels(model)
        self._prompt_tokens = instruments.prompt_tokens.labels(model)
        self._preemptions = instruments.preemptions.labels(model)
        self._tokens = instruments.tokens.labels(model)
        self._last = PrefixCounts()

    def observe(self, outcome: StreamOutcome) -> None:
        """Count a stream that has ended."""
        of, model = self._of, self._model
        of.ended.labels(model, outcome.status, _reason(outcome)).inc()
        of.tenants.labels(model, outcome.query.tenant, outcome.status).inc()
        of.finished.labels(model, finish_of(outcome)).inc()
        for subnet_id, count in CountOf(outcome.subnet_ids).items():
            of.outputs.labels(model, subnet_id).inc(count)
        if outcome.relegated:
            of.relegated.labels(model).inc()
        self._fluidity.observe(outcome.fluidity)
        self._weighted.observe(outcome.weighted_fluidity)
        times_s = outcome.output_s
        if times_s:
            self._first.observe(times_s[0] - outcome.query.arrival_s)
            self._observe_times(outcome)
        for earlier_s, later_s in pairwise(times_s):
            self._gap.observe(later_s - earlier_s)

    def stepped(self, step: Step, ended_s: float, decision_s: float) -> None:
        """Count an iteration that has ended."""
        self._of.iterations.labels(self._model, step.subnet_id).inc()
        self._iteration.observe(ended_s - step.start_s)
        self._decision.observe(decision_s)
        self._tokens.observe(step.num_tokens)
        self._preemptions.inc(len(step.preempted))
        self._prompt_tokens.inc(sum(c.length for c in step.chunks if c.length > 1 or not c.samples))

    def refresh(self, engine: StreamEngine) -> None:
        """Set what is a state and not an event; called when the metrics are read."""
        status = engine.status()
        self._of.running.labels(self._model).set(status.num_running)
        self._of.waiting.labels(self._model).set(status.num_waiting)
        self._of.kv.labels(self._model).set(status.kv_share)
        self._of.ready.labels(self._model).set(status.state == "ready")
        counts, last = engine.prefix_counts(), self._last
        self._of.prefix_queried.labels(self._model).inc(counts.queried_tokens - last.queried_tokens)
        self._of.prefix_hit.labels(self._model).inc(counts.hit_tokens - last.hit_tokens)
        self._last = counts

    def _observe_times(self, outcome: StreamOutcome) -> None:
        """Note of a stream that had outputs where its time went."""
        of, model, times_s = self._of, self._model, outcome.output_s
        start_s = outcome.query.arrival_s if outcome.start_s is None else outcome.start_s
        of.whole.labels(model).observe(times_s[-1] - outcome.query.arrival_s)
        of.queue.labels(model).observe(start_s - outcome.query.arrival_s)
        of.prefill.labels(model).observe(times_s[0] - start_s)
        of.decode.labels(model).observe(times_s[-1] - times_s[0])
        if len(times_s) > 1:
            of.period.labels(model).observe((times_s[-1] - times_s[0]) / (len(times_s) - 1))


def _reason(outcome: StreamOutcome) -> str:
    """The reason without what differs from case to case: a label has few values."""
    return outcome.reason.split(":", 1)[0]


def finish_of(outcome: StreamOutcome) -> str:
    """Return how a stream ended by OpenAI's word: `stop`, `length`, else `abort` or `error`."""
    if outcome.is_complete:
        whole = len(outcome.output_s) >= outcome.query.max_tokens
        return "length" if whole else "stop"
    return "error" if outcome.status == "failed" else "abort"
