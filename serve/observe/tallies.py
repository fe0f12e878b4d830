"""Counters and histograms that cost the hot path an addition; Prometheus reads them when it asks.

The client library's own take a lock and check their labels for every observation, a microsecond
each, and an answer makes ten. These are written in one thread (a histogram of decisions in another)
and read in any: what is read is at most one observation old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class CountSeries:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add an amount."""
        self.value += amount


class TallyCounter(Collector):
    """A counter; `labels` returns one of its series, made when it is first asked for."""

    def __init__(
        self, name: str, text: str, labelnames: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labelnames = name, text, tuple(labelnames)
        self._series: dict[tuple[str, ...], CountSeries] = {}
        registry.register(self)

    def labels(self, *values: object) -> CountSeries:
        """Return the series with these labels."""
        key = tuple(map(str, values))
        assert len(key) == len(self._labelnames), "a value for each label"
        return self._series.setdefault(key, CountSeries())

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Return the counter without its series, for the registry."""
        return [CounterMetricFamily(self._name, self._text, labels=self._labelnames)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the counter with its series."""
        (family,) = self.describe()
        for key, series in tuple(self._series.items()):
            family.add_metric(key, series.value)
        return [family]


class BucketSeries:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Take in a value, `count` times."""
        self.counts[bisect_left(self._bounds, value)] += count
        self.total += value * count


class TallyHistogram(Collector):
    """A histogram with the upper bounds of its buckets, in ascending order."""

    def __init__(
        self,
        name: str,
        text: str,
        labelnames: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self._labelnames = name, text, tuple(labelnames)
        self.bounds = tuple(map(float, bounds))
        self._series: dict[tuple[str, ...], BucketSeries] = {}
        registry.register(self)

    def labels(self, *values: object) -> BucketSeries:
        """Return the series with these labels."""
        return self._series.setdefault(tuple(map(str, values)), BucketSeries(self.bounds))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the histogram without its series, for the registry."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labelnames)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the histogram with its series."""
        (family,) = self.describe()
        for key, series in tuple(self._series.items()):
            below, buckets = 0, list[tuple[str, float]]()
            for bound, count in zip(
                (*self.bounds, float("inf")), tuple(series.counts), strict=True
            ):
                below += count
                buckets.append((floatToGoString(bound), float(below)))
            family.add_metric(key, buckets, series.total)
        return [family]
