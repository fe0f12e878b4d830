"""Counters and histograms of our own say what the client library's say."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from serve.observe.tallies import TallyCounter, TallyHistogram

BOUNDS = (0.001, 0.01, 0.1, 1.0)


def exposition(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_both_write_what_the_librarys_write(rng: np.random.Generator):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counters = (
        TallyCounter("asked", "How often.", ("model", "why"), ours),
        Counter("asked", "How often.", ["model", "why"], registry=theirs),
    )
    histograms = (
        TallyHistogram("took_seconds", "How long.", ("model",), BOUNDS, ours),
        Histogram("took_seconds", "How long.", ["model"], buckets=BOUNDS, registry=theirs),
    )
    for counter in counters:
        counter.labels("a", "x").inc()
        counter.labels("a", 'y"\n').inc(2.5)
    for value in (0.0, 0.001, 1.0, 7.0, *rng.lognormal(-3, 2, 200)):
        for histogram in histograms:
            histogram.labels("a").observe(float(value))
    assert exposition(ours) == exposition(theirs)


def test_a_value_counts_as_often_as_it_is_said_to():
    registry = CollectorRegistry()
    series = TallyHistogram("n", "N.", (), BOUNDS, registry).labels()
    series.observe(0.05, 3)
    assert registry.get_sample_value("n_count") == 3
    assert registry.get_sample_value("n_bucket", {"le": "0.01"}) == 0
    assert registry.get_sample_value("n_bucket", {"le": "0.1"}) == 3
    assert registry.get_sample_value("n_sum") == 3 * 0.05


def test_before_anything_is_observed_there_is_the_head_alone():
    registry = CollectorRegistry()
    TallyCounter("asked", "How often.", ("model",), registry)
    assert exposition(registry) == ["# HELP asked_total How often.", "# TYPE asked_total counter"]
