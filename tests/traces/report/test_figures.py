"""Tails that count the unanswered, maxima that are maxima, and figures per class and tenant."""

from __future__ import annotations

import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.query import Outcome
from traces.report.figures import latency_all_ms, most_waiting, with_figures
from traces.texts import Texts
from traces.trace import Trace


def ended(i: int, arrival_s: float, took_s: float | None, wait_s: float = 0.0) -> Outcome:
    """On time within 0.1 s, late after; dropped, without a start, when `took_s` is None."""
    deadline_s = arrival_s + 0.1
    if took_s is None:
        gone = (i, "dropped", "infeasible", arrival_s, deadline_s, None, deadline_s)
        return Outcome(*gone, None, 0.0, 0)
    status = "on_time" if took_s <= 0.1 else "late"
    start_s = arrival_s + wait_s
    return Outcome(
        i, status, "", arrival_s, deadline_s, start_s, arrival_s + took_s, "s", 0.9, 1, 0
    )


def report_of(outcomes: list[Outcome], duration_s: float) -> dict:
    return summarize(outcomes, policy="p", slo_s=0.1, duration_s=duration_s, seed=0, profile="test")


def test_quantiles_of_all_count_the_unanswered_as_infinite():
    outcomes = [ended(i, float(i), 0.01 * (i + 1)) for i in range(94)]
    outcomes += [ended(i, float(i), None) for i in range(94, 100)]
    found = latency_all_ms(outcomes)
    assert found["p50"] == pytest.approx(500)
    assert found["p90"] == pytest.approx(900)
    assert found["p95"] is None  # six of a hundred have no answer at all
    assert found["p99"] is None
    assert latency_all_ms([]) == dict.fromkeys(("p50", "p90", "p95", "p99"))
    trace = Trace(arrival_s=np.arange(100.0), duration_s=100.0)
    report = with_figures(report_of(outcomes, 100.0), outcomes, trace)
    assert report["latency_ms"]["p95"] == pytest.approx(np.percentile(np.arange(1, 95) * 10, 95))


def test_the_most_that_wait_is_over_all_moments():
    """Twelve wait in the middle of a bin, and none at its end."""
    outcomes = [ended(i, 0.2, 0.09, wait_s=0.05) for i in range(12)]
    outcomes += [ended(12, 1.5, 0.01), ended(13, 2.9, 0.4, wait_s=0.3)]
    edges_s = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert most_waiting(outcomes, edges_s) == [12, 0, 1, 1]
    trace = Trace(arrival_s=np.array([o.arrival_s for o in outcomes]), duration_s=4.0)
    report = with_figures(report_of(outcomes, 4.0), outcomes, trace)
    assert report["max_waiting"] == 12
    assert max(report["series"]["queue_max"]) == 12


def test_the_running_maximum_is_that_of_every_moment():
    rng = np.random.default_rng(5)
    came = np.sort(rng.uniform(0, 10, 300)).round(2)
    outcomes = [
        ended(i, t, 1.0, w)
        for i, (t, w) in enumerate(zip(came, rng.uniform(0, 1, 300), strict=True))
    ]
    edges_s = np.linspace(0, 10, 41)
    moments = np.unique([o.arrival_s for o in outcomes] + [o.start_s for o in outcomes])
    for k, most in enumerate(most_waiting(outcomes, edges_s)):
        inside = moments[(moments >= edges_s[k]) & (moments < edges_s[k + 1])]
        at = [edges_s[k], *inside]
        plain = max(sum(o.arrival_s <= t < o.start_s for o in outcomes) for t in at)
        assert most == plain


def test_each_class_and_tenant_has_its_own_figures():
    outcomes = [ended(i, float(i), 0.05 if i % 2 else None) for i in range(10)]
    trace = Trace(
        arrival_s=np.arange(10.0),
        duration_s=10.0,
        query_class=np.arange(10) % 2,
        tenant=Texts.of(["web", "job"] * 4 + ["", "web"]),
    )
    report = with_figures(report_of(outcomes, 10.0), outcomes, trace)
    assert list(report["classes"]) == ["0", "1"]
    assert report["classes"]["0"]["slo_attainment"] == 0.0
    assert report["classes"]["0"]["p99_all_ms"] is None
    assert report["classes"]["1"]["slo_attainment"] == 1.0
    assert report["classes"]["1"]["latency_ms"]["p95"] == pytest.approx(50)
    assert report["tenants"]["web"]["num_queries"] == 5
    assert report["tenants"]["web"]["slo_attainment"] == pytest.approx(0.2)
    assert report["tenants"]["(unknown)"]["num_queries"] == 1
    whole = sum(
        figures["num_queries"] * figures["slo_attainment"] for figures in report["tenants"].values()
    )
    assert whole / 10 == pytest.approx(report["slo_attainment"])


def test_many_tenants_are_the_largest_and_the_others():
    names = [f"t{i}" for i in range(100) for _ in range(1 + (i == 7))]
    outcomes = [ended(i, float(i), 0.05) for i in range(len(names))]
    trace = Trace(arrival_s=np.arange(float(len(names))), duration_s=200.0, tenant=Texts.of(names))
    tenants = with_figures(report_of(outcomes, 200.0), outcomes, trace)["tenants"]
    assert len(tenants) == 33
    assert tenants["t7"]["num_queries"] == 2
    assert sum(t["num_queries"] for t in tenants.values()) == len(names)
