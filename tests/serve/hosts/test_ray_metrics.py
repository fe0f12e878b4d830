"""The mirror to Ray's metrics: what it tells adds up to the registry that it mirrors."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.engine.reply import Reply
from serve.hosts.ray_metrics import RayMirror, exporting_to_ray
from serve.observe.metrics import Metrics
from slackfit.query import Outcome


class Told:
    """Metrics with Ray's methods that add up in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def make(self, kind: str, name: str, text: str, labels: Any, bounds: Any) -> Any:
        classes = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        options: dict[str, Any] = {"buckets": bounds} if kind == "histogram" else {}
        metric: Any = classes[kind](name, text, labels, registry=self.registry, **options)

        def child(tags: dict[str, str]) -> Any:
            return metric.labels(**tags) if tags else metric

        class Made:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                child(tags).inc(value)

            def set(self, value: float, tags: dict[str, str]) -> None:
                child(tags).set(value)

            def observe(self, value: float, tags: dict[str, str]) -> None:
                child(tags).observe(value)

        return Made()


def observe(metrics: Metrics, model: str, *latencies_s: float) -> None:
    for index, latency_s in enumerate(latencies_s):
        status = "on_time" if latency_s < 0.1 else "late"
        outcome = Outcome(0, status, "", 0.0, 0.1, 0.0, latency_s, "large", 0.9, 2)
        metrics.of(model).observe(Reply(outcome, object(), latency_s, index))  # type: ignore[arg-type]
        metrics.of(model).decided(latency_s / 1000)


def samples(registry: CollectorRegistry) -> dict[tuple, float]:
    """Every sample that was ever touched, without sums of histograms (Ray estimates those)."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.value and not sample.name.endswith(("_created", "_seconds_sum", "_size_sum"))
    }


@pytest.fixture
def told() -> Told:
    return Told()


def test_what_is_told_adds_up_to_the_registry(told: Told):
    metrics = Metrics()
    mirror = RayMirror(metrics.registry, told.make)
    observe(metrics, "a", 0.0001, 0.003, 0.4)
    mirror.export()
    observe(metrics, "a", 0.003, 99.0)
    observe(metrics, "b", 0.0003)
    metrics.refused("http", "too_large")
    metrics._instruments.depth.labels("a").set(7)
    mirror.export()
    mirror.export()
    assert samples(told.registry) == samples(metrics.registry)
    assert len(samples(told.registry)) > 50


def test_telling_repeats_and_ends_with_the_last_word(told: Told):
    metrics = Metrics()
    refreshed: list[None] = []

    async def main() -> None:
        telling = exporting_to_ray(
            metrics.registry, lambda: refreshed.append(None), make=told.make, interval_s=0.0
        )
        async with telling:
            while len(refreshed) < 3:
                await asyncio.sleep(0)
            observe(metrics, "a", 0.003)

    asyncio.run(main())
    assert samples(told.registry) == samples(metrics.registry) != {}


def test_telling_goes_on_after_a_failure_and_refreshes_on_the_loop(told: Told, caplog):
    """A refresh that raised once had ended all telling, and left the block with its error."""
    metrics = Metrics()
    threads: set[int] = set()
    count = 0

    def refresh() -> None:
        nonlocal count
        count += 1
        threads.add(threading.get_ident())
        if count in (1, 2, 3):
            raise RuntimeError("deque mutated during iteration")

    async def main() -> None:
        async with exporting_to_ray(metrics.registry, refresh, make=told.make, interval_s=0.001):
            observe(metrics, "a", 0.003)
            while count < 10:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert threads == {threading.get_ident()}
    assert samples(told.registry) == samples(metrics.registry) != {}
    assert caplog.text.count("refresh failed") == 1  # the next line comes with the tenth


def test_what_ray_refused_once_is_told_later(told: Told):
    metrics = Metrics()
    refuses = True

    def make(*args: Any) -> Any:
        if refuses:
            raise RuntimeError("Ray is not there")
        return told.make(*args)

    mirror = RayMirror(metrics.registry, make)
    metrics.refused("http", "too_large")
    with pytest.raises(RuntimeError):
        mirror.export()
    refuses = False
    mirror.export()
    assert samples(told.registry) == samples(metrics.registry) != {}
