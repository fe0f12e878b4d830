"""A replica's metrics handed to Ray, which exports them from every node as `ray_supernet_...`.

Our registry stays the one place where things are counted; once a second what has grown since is
handed to Ray. That costs the hot path nothing, and a thread about 2 microseconds per histogram
entry. Ray keeps buckets and takes each entry at its bucket's middle, so sums and means of
its histograms are estimates, while counters are exact (hence `supernet_busy_seconds_total`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from serve.engine.guarded import Guarded

INTERVAL_S = 1.0

Labels = tuple[tuple[str, str], ...]


class RayMirror:
    """Hands Ray what changed in a registry since the last time.

    `make(kind, name, text, labels, bounds)` returns a metric of Ray; `kind` is counter, gauge or
    histogram, `bounds` the upper ends of a histogram's buckets.
    """

    def __init__(self, registry: CollectorRegistry, make: Callable[..., Any]) -> None:
        self._registry = registry
        self._make = make
        self._metrics: dict[str, Any] = {}
        self._exported: dict[tuple[str, Labels], float] = {}

    def export(self) -> None:
        """Bring Ray's metrics up to those of the registry."""
        for metric in self._registry.collect():
            if metric.type == "histogram":
                self._export_histogram(metric)
            elif metric.type == "counter":
                self._export_counter(metric)
            else:
                for sample in metric.samples:
                    self._ours(metric, sample.labels).set(sample.value, sample.labels)

    def _export_counter(self, metric: Metric) -> None:
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                ours = self._ours(metric, sample.labels)  # may fail: before growth is noted
                grown = self._grown(sample.name, sample.labels, sample.value)
                if grown > 0:
                    ours.inc(grown, sample.labels)

    def _export_histogram(self, metric: Metric) -> None:
        bounds = _bounds(metric)
        below = 0.0
        for sample in metric.samples:
            if not sample.name.endswith("_bucket"):
                continue
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            upper = float(sample.labels["le"])
            if upper == bounds[0]:
                below = 0.0  # the first bucket of another series
            count, below = sample.value - below, sample.value
            ours = self._ours(metric, labels, bounds)
            for _ in range(round(self._grown(sample.name, sample.labels, count))):
                ours.observe(_middle(bounds, upper), labels)

    def _grown(self, name: str, labels: Mapping[str, str], value: float) -> float:
        key = (name, tuple(sorted(labels.items())))
        before = self._exported.get(key, 0.0)
        self._exported[key] = value
        return value - before

    def _ours(self, metric: Metric, labels: Mapping[str, str], bounds: Sequence[float] = ()) -> Any:
        ours = self._metrics.get(metric.name)
        if ours is None:
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            ours = self._make(metric.type, name, metric.documentation, tuple(labels), tuple(bounds))
            self._metrics[metric.name] = ours
        return ours


def make_ray_metric(
    kind: str, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]
) -> Any:
    """Return a metric of Ray; it has the labels of replica and deployment besides."""
    import ray.serve.metrics as ray_metrics

    tag_keys: Any = labels  # declared by Ray as a tuple of one
    if kind == "counter":
        return ray_metrics.Counter(name, text, tag_keys=tag_keys)
    if kind == "gauge":
        return ray_metrics.Gauge(name, text, tag_keys=tag_keys)
    return ray_metrics.Histogram(name, text, boundaries=list(bounds), tag_keys=tag_keys)


@contextlib.asynccontextmanager
async def exporting_to_ray(
    registry: CollectorRegistry,
    refresh: Callable[[], None],
    *,
    make: Callable[..., Any] = make_ray_metric,
    interval_s: float = INTERVAL_S,
) -> AsyncIterator[None]:
    """Mirror `registry` to Ray for the length of an `async with` block, `refresh`ed before.

    `refresh` runs on the event loop. What it or Ray raises is logged, and telling goes on.
    """
    mirror = Guarded(RayMirror(registry, make).export)
    guarded_refresh = Guarded(refresh)
    is_over = asyncio.Event()

    async def repeat() -> None:
        while not is_over.is_set():
            guarded_refresh()  # on the loop, where what it reads is written
            await asyncio.to_thread(mirror)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), interval_s)

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        is_over.set()
        await task  # two threads that tell at once would tell some of it twice
        guarded_refresh()
        mirror()  # the last second counts too


def _bounds(metric: Metric) -> tuple[float, ...]:
    """Return the finite upper ends of a histogram's buckets."""
    uppers = {float(s.labels["le"]) for s in metric.samples if s.name.endswith("_bucket")}
    return tuple(sorted(upper for upper in uppers if math.isfinite(upper)))


def _middle(bounds: Sequence[float], upper: float) -> float:
    """Return a value in the bucket that ends at `upper`."""
    if math.isinf(upper):
        return bounds[-1] * 2
    index = bounds.index(upper)
    return (bounds[index - 1] + upper) / 2 if index else upper / 2
