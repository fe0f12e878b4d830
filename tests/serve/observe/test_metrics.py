"""Metrics: what is counted, and that the documentation lists exactly what there is."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serve.engine.reply import Reply
from serve.observe.instruments import Instruments
from serve.observe.metrics import Metrics
from serve.observe.recent_outcomes import RecentOutcomes
from serve.observe.tallies import TallyHistogram
from slackfit.query import Outcome
from subnetact.executor import CACHE_COUNTS

LOGITS = np.zeros(10, dtype=np.float32)


def reply(
    status: str = "on_time",
    reason: str = "",
    *,
    finish_s: float = 0.02,
    batch_id: int | None = 0,
    deadline_s: float = 0.1,
) -> Reply:
    """A query that arrived at 0, was launched at 5 ms and took the rest on `large`."""
    if status in ("on_time", "late"):
        outcome = Outcome(
            0, status, reason, 0.0, deadline_s, 0.005, finish_s, "large", 0.9, 2
        )  # fmt: skip
        return Reply(outcome, LOGITS, finish_s - 0.005, batch_id)
    return Reply(Outcome(0, status, reason, 0.0, deadline_s, None, finish_s, None, 0.0, 0))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": "m", **labels})


def test_a_batch_is_counted_once_and_its_queries_each(metrics: Metrics):
    for batch_id in (0, 0, 1, 1):
        metrics.of("m").observe(reply(batch_id=batch_id))
    assert sample(metrics, "supernet_subnet_queries_total", subnet="large") == 4
    assert sample(metrics, "supernet_batches_total", subnet="large") == 2
    assert sample(metrics, "supernet_batch_size_sum") == 4
    assert sample(metrics, "supernet_execution_seconds_count") == 2
    assert sample(metrics, "supernet_busy_seconds_total") == pytest.approx(0.03)
    assert sample(metrics, "supernet_on_time_accuracy_total") == pytest.approx(3.6)
    assert sample(metrics, "supernet_latency_seconds_count") == 4


def test_slack_is_of_answers_on_time_and_lateness_of_the_late(metrics: Metrics):
    metrics.of("m").observe(reply("on_time", finish_s=0.02))
    metrics.of("m").observe(reply("late", finish_s=0.35))
    assert sample(metrics, "supernet_slack_seconds_sum") == pytest.approx(0.08)
    assert sample(metrics, "supernet_slack_seconds_count") == 1
    assert sample(metrics, "supernet_lateness_seconds_sum") == pytest.approx(0.25)
    assert sample(metrics, "supernet_lateness_seconds_bucket", le="0.256") == 1
    assert sample(metrics, "supernet_on_time_accuracy_total") == pytest.approx(0.9)


def test_reasons_are_labels_and_texts_of_failures_are_not(metrics: Metrics):
    metrics.of("m").observe(reply("rejected", "queue_full"))
    metrics.of("m").observe(reply("failed", "execution failed: ValueError: 17 of 4711"))
    metrics.of("m").observe(reply("failed", "device_failed"))
    for status, reason in [
        ("rejected", "queue_full"),
        ("failed", "device_failed"),
        ("failed", "execution_failed"),
    ]:
        value = sample(metrics, "supernet_queries_total", status=status, reason=reason)
        assert value == 1, reason
    assert sample(metrics, "supernet_latency_seconds_count") == 0


def test_the_recent_share_forgets_what_is_ten_seconds_old():
    recent = RecentOutcomes(window_s=10)
    assert math.isnan(recent.attainment(0.0))
    recent.observe(reply("dropped", "expired", finish_s=0.5).outcome)
    recent.observe(reply("on_time", finish_s=9.0).outcome)
    assert recent.attainment(9.9) == 0.5
    assert recent.accuracy(9.9) == pytest.approx(0.9)
    assert recent.attainment(10.0) == 1.0
    assert math.isnan(recent.accuracy(19.0))


def test_a_share_without_a_query_on_time_has_no_accuracy():
    recent = RecentOutcomes()
    recent.observe(reply("dropped", "expired").outcome)
    assert recent.attainment(1.0) == 0.0
    assert math.isnan(recent.accuracy(1.0))


def test_the_cache_is_read_when_the_metrics_are(metrics: Metrics, make_bench, profile):
    bench = make_bench(profile)
    engine = bench.engine
    counts = [
        dict(zip(CACHE_COUNTS, row, strict=True), graphs_live=7)
        for row in ((10, 2, 2, 0, 4096), (25, 3, 4, 1, 8192))
    ]
    bench.device.counts = lambda: counts.pop(0)
    metrics.refresh([("m", engine)])
    assert sample(metrics, "supernet_cache_events_total", event="hit") == 10
    metrics.refresh([("m", engine)])
    events = {
        event: sample(metrics, "supernet_cache_events_total", event=event)
        for event in ("hit", "miss", "load", "eviction")
    }
    assert events == {"hit": 25, "miss": 3, "load": 4, "eviction": 1}
    assert sample(metrics, "supernet_cache_bytes") == 8192
    assert sample(metrics, "supernet_device", what="graphs_live") == 7
    assert sample(metrics, "supernet_ready") == 1
    assert sample(metrics, "supernet_latency_factor") == 1.0


def test_the_policys_decision_is_timed_by_the_engines_clock(metrics: Metrics, make_bench, profile):
    bench = make_bench(profile)
    poll = bench.scheduler.poll

    def slow_poll(now_s: float, *rest: Any):
        bench.clock.now_s += 3e-5
        return poll(now_s, *rest)

    bench.scheduler.poll = slow_poll
    bench.engine._on_decision = metrics.of("m").decided
    bench.submit()
    assert bench.engine.step()
    assert not bench.engine.step()  # a poll without a batch is no decision
    assert sample(metrics, "supernet_decision_seconds_count") == 1
    assert sample(metrics, "supernet_decision_seconds_sum") == pytest.approx(3e-5)


def test_the_documentation_lists_every_metric_with_kind_and_labels():
    page = Path("docs/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(supernet_\w+)` \| (\w+) \|([^|]*)\|", page, flags=re.MULTILINE)
    documented = {name: (kind, re.findall(r"\w+", labels)) for name, kind, labels in rows}
    assert documented == existing_metrics()


def existing_metrics() -> dict[str, tuple[str, list[str]]]:
    """Kind and labels (beside `model`) of every metric by the name that is queried."""
    found = {}
    for metric in vars(Instruments(CollectorRegistry())).values():
        if not hasattr(metric, "_labelnames"):
            continue
        (family,) = metric.describe()
        labels = [label for label in metric._labelnames if label != "model"]
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, labels)
        if isinstance(metric, TallyHistogram):
            assert metric.bounds[0] > 0, "Ray takes no bucket below zero"
    return found


def test_latency_buckets_start_below_a_millisecond(metrics: Metrics):
    metrics.of("m").observe(reply(finish_s=0.0054))
    assert sample(metrics, "supernet_execution_seconds_bucket", le="0.0005") == 1
    assert sample(metrics, "supernet_execution_seconds_bucket", le="0.00025") == 0
