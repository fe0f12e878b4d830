"""What `supernet top` shows: figures out of two readings of a server's metrics. Pure.

Readings are sums over whatever replicas the text holds, by model; Ray's prefix is taken off. The
figures of a time span are differences of two readings, so that nothing of the server's is needed
but its counters. A counter that has fallen belongs to a server that was started again: what it
shows now is what was counted since.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

# Others name replicas, nodes, scopes, doors.
_LABELS = ("tenant", "status", "outcome", "reason", "subnet", "event", "what", "le")
_SERVER = ""  # what is no model's
STREAMS = "supernet_stream_"
"""How the metrics of decoders begin."""

Key = tuple[str, ...]
Reading = Mapping[str, Mapping[Key, float]]
"""Sums by model, and in it by the sample's name and the values of its labels; "" is the server."""


class TenantFigures(NamedTuple):
    """One tenant of a model over one time span: counts, and fractions (NaN of nothing)."""

    ended: float
    attainment: float
    accuracy: float


class Figures(NamedTuple):
    """One model over one time span; NaN where there was nothing to measure.

    `attainment`, `accuracy`, `busy` and `resident` are fractions, `subnets` and `reasons` count
    queries, quantiles are seconds; `tenants` go by name, those with the most queries first.
    `graphs` are those that a CUDA device has, and those that are hot and missing; None elsewhere.
    `span_s` is None for the time since the server's start where
    that is not known, and so is `qps`.
    """

    model: str
    span_s: float | None
    ended: float
    qps: float | None
    attainment: float
    accuracy: float
    depth: float
    running: float
    replicas: float
    busy: float | None
    batch_size: float
    resident: float
    graphs: tuple[float, float] | None
    subnets: dict[str, float]
    reasons: dict[str, float]
    tenants: dict[str, TenantFigures]
    slack_s: tuple[float, float]
    latency_s: tuple[float, float]
    lateness_s: float
    decision_s: float


def read(text: str) -> Reading:
    """Return the sums of an exposition text. Raises ValueError for one that is none."""
    reading: defaultdict[str, defaultdict[Key, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("ray_")
            if name.startswith("supernet_"):
                labels = [sample.labels[label] for label in _LABELS if label in sample.labels]
                reading[sample.labels.get("model", _SERVER)][name, *labels] += sample.value
    return reading


def serves_streams(reading: Mapping[Key, float]) -> bool:
    """Whether the metrics of a model are those of a decoder."""
    return any(key[0].startswith(STREAMS) for key in reading)


def figures(new: Reading, old: Reading, span_s: float | None) -> list[Figures]:
    """Return the figures of every model that answers at once between two readings, by name.

    Against an empty `old` they are those since the server's start.
    """
    return [
        _figures(model, Grown(new[model], old.get(model, {})), span_s)
        for model in sorted(new)
        if model != _SERVER and not serves_streams(new[model])
    ]


def refusals(new: Reading, old: Reading) -> dict[tuple[str, str], float]:
    """Return how many requests got an error at the doors, by (tenant, reason), most first."""
    grown = Grown(new.get(_SERVER, {}), old.get(_SERVER, {}))
    found = {
        (key[1], key[2]): grown.value(*key)
        for key in grown.now
        if key[0] == "supernet_refused_requests_total"
    }
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return {who: count for who, count in ordered if count > 0}


class Grown:
    """What grew between two readings of one model."""

    def __init__(self, new: Mapping[Key, float], old: Mapping[Key, float]) -> None:
        self.now = new
        self._old = old

    def value(self, *key: str) -> float:
        """Return how much a counter grew; a fallen one was started again."""
        now, before = self.now.get(key, 0.0), self._old.get(key, 0.0)
        return now - before if now >= before else now

    def by_last_label(self, name: str) -> dict[str, float]:
        """Return how much each series of a metric grew, those that did, largest first."""
        grown = {key[-1]: self.value(*key) for key in self.now if key[0] == name and len(key) > 1}
        ordered = sorted(grown.items(), key=lambda item: -item[1])
        return {label: value for label, value in ordered if value > 0}

    def quantile(self, name: str, fraction: float) -> float:
        """Return a quantile of a histogram's growth, linear inside a bucket; NaN for none."""
        buckets = sorted(
            (float(key[-1]), self.value(*key)) for key in self.now if key[0] == f"{name}_bucket"
        )
        if not buckets or buckets[-1][1] <= 0:
            return math.nan
        wanted = fraction * buckets[-1][1]
        lower = below = 0.0
        for upper, count in buckets:
            if count >= wanted and count > below:
                if math.isinf(upper):
                    return lower
                return lower + (upper - lower) * (wanted - below) / (count - below)
            lower, below = upper, count
        return lower


def _figures(model: str, grown: Grown, span_s: float | None) -> Figures:
    outcomes = {
        key[1:]: grown.value(*key) for key in grown.now if key[0] == "supernet_queries_total"
    }
    ended = sum(outcomes.values())
    on_time = sum(count for labels, count in outcomes.items() if labels[0] == "on_time")
    replicas = grown.now.get(("supernet_ready",), 0.0)
    busy_s = grown.value("supernet_busy_seconds_total")
    subnets = grown.by_last_label("supernet_subnet_queries_total")
    hits = grown.value("supernet_cache_events_total", "hit")
    misses = grown.value("supernet_cache_events_total", "miss")
    batches = sum(grown.by_last_label("supernet_batches_total").values())
    return Figures(
        model=model,
        span_s=span_s,
        ended=ended,
        qps=ended / span_s if span_s else None,
        attainment=ratio(on_time, ended),
        accuracy=ratio(grown.value("supernet_on_time_accuracy_total"), on_time),
        depth=grown.now.get(("supernet_queue_depth",), 0.0),
        running=grown.now.get(("supernet_running_batches",), 0.0),
        replicas=replicas,
        busy=ratio(busy_s, span_s * max(1.0, replicas)) if span_s else None,
        batch_size=ratio(sum(subnets.values()), batches),
        resident=ratio(hits, hits + misses),
        graphs=_graphs(grown.now),
        subnets=subnets,
        reasons=_reasons(outcomes),
        tenants=_tenants(grown),
        slack_s=_quantiles(grown, "supernet_slack_seconds", 0.01, 0.5),
        latency_s=_quantiles(grown, "supernet_latency_seconds", 0.5, 0.99),
        lateness_s=grown.quantile("supernet_lateness_seconds", 0.99),
        decision_s=grown.quantile("supernet_decision_seconds", 0.5),
    )


def _tenants(grown: Grown) -> dict[str, TenantFigures]:
    counts: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for key in grown.now:
        if key[0] == "supernet_tenant_queries_total":
            counts[key[1]][key[2]] = grown.value(*key)
    found: dict[str, TenantFigures] = {}
    for tenant, statuses in counts.items():
        ended, on_time = sum(statuses.values()), statuses.get("on_time", 0.0)
        accuracy = grown.value("supernet_tenant_on_time_accuracy_total", tenant)
        if ended > 0:
            shares = ratio(on_time, ended), ratio(accuracy, on_time)
            found[tenant] = TenantFigures(ended, *shares)
    return dict(sorted(found.items(), key=lambda item: (-item[1].ended, item[0])))


def _graphs(now: Mapping[Key, float]) -> tuple[float, float] | None:
    live = now.get(("supernet_device", "graphs_live"))
    return None if live is None else (live, now.get(("supernet_device", "graphs_missing"), 0.0))


def _reasons(outcomes: Mapping[Key, float]) -> dict[str, float]:
    """Return why queries were not on time, most frequent first."""
    missed = {
        " ".join(labels).strip(): count
        for labels, count in outcomes.items()
        if labels[0] != "on_time" and count > 0
    }
    return dict(sorted(missed.items(), key=lambda item: -item[1]))


def _quantiles(grown: Grown, name: str, first: float, second: float) -> tuple[float, float]:
    return grown.quantile(name, first), grown.quantile(name, second)


def ratio(part: float, whole: float) -> float:
    """Return a part of a whole; NaN of nothing."""
    return part / whole if whole else math.nan
