"""What Prometheus is told of streams: each stream and iteration once, in the engine's times."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.engine.streams.open_stream import StreamRequest
from serve.engine.streams.stream_device import StreamDevice
from serve.engine.streams.stream_engine import StreamEngine
from serve.observe.stream_metrics import StreamInstruments, StreamMetrics
from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from subnetact.timed_decoder import TimedDecoder

COSTS = IterationCosts.of(LatencyProfile.load("profiles/smollm2_135m_example.json"))


def read(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    found: dict[tuple[str, ...], float] = {}
    for family in families:
        for sample in family.samples:
            labels = [value for key, value in sample.labels.items() if key != "model"]
            found[(sample.name.removeprefix("supernet_stream_"), *labels)] = sample.value
    return found


def test_streams_and_iterations_are_counted_once():
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    registry = CollectorRegistry()
    metrics = StreamMetrics(StreamInstruments(registry), "m")
    engine = StreamEngine(
        StreamScheduler(COSTS, create_stream_policy("fixed:largest", COSTS)),
        StreamDevice(TimedDecoder(COSTS, clock=lambda: now_s[0], sleep=sleep)),
        clock=lambda: now_s[0],
        observer=metrics.observe,
        on_step=metrics.stepped,
    )
    engine._state = "ready"
    streams = [
        engine.open(
            StreamRequest(
                prompt=[7] * 20,
                max_tokens=5,
                arrival_s=0.0,
                first_deadline_s=due_s,
                period_s=0.25,
            )
        )
        for due_s in (2.0, 0.01)  # the second one's first output is late by more than nine others
    ]
    streams.append(
        engine.open(
            StreamRequest(
                prompt=[7] * 70_000, max_tokens=1, arrival_s=0.0, first_deadline_s=9.0, period_s=1.0
            )
        )
    )
    metrics.refresh(engine)
    assert read(registry)[("waiting",)] == 2.0
    steps = 0
    while engine.step():
        steps += 1
    metrics.refresh(engine)
    found = read(registry)
    assert found[("ended_total", "on_time", "")] == 1.0
    assert found[("ended_total", "late", "")] == 1.0
    assert found[("ended_total", "rejected", "too_long")] == 1.0
    assert found[("outputs_total", "e1")] == 10.0
    assert found[("iterations_total", "e1")] == found[("iteration_seconds_count",)] == steps
    assert found[("iteration_seconds_sum",)] > 0.9 * now_s[0]
    assert found[("prompt_tokens_total",)] == 40.0
    assert found[("fluidity_count",)] == 3.0
    outcomes = [stream.outcome for stream in streams]
    assert found[("fluidity_sum",)] == sum(o.fluidity for o in outcomes if o)
    assert found[("first_output_seconds_count",)] == 2.0
    assert found[("gap_seconds_count",)] == 8.0
    assert found[("relegated_total",)] == 1.0
    assert found[("running",)] == found[("waiting",)] == found[("kv_share",)] == 0.0
