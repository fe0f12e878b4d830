"""Streams on the report page: the table, the pictures, which stream is told."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from slackfit.profile import LatencyProfile
from slackfit.streams.stream_query import Step, StreamChunk, StreamOutcome, StreamQuery
from traces.report.page import render_page
from traces.report.stream_pictures import stream_section
from traces.simulation.capacity import Goal
from traces.simulation.simulation import SimulationOptions, simulate_policies
from traces.simulation.stream_simulation import (
    StreamOptions,
    StreamSlo,
    find_stream_capacities,
    simulate_stream_policies,
)
from traces.simulation.stream_timeline import stream_timeline
from traces.trace import Trace

PROFILE = LatencyProfile.load("profiles/smollm2_135m_example.json")
OPTIONS = StreamOptions(slo=StreamSlo(ttft_s=0.8, tpot_s=0.2))


def a_trace(rate: float) -> Trace:
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(1.0 / rate, 60))
    return Trace(
        arrival_s=arrival_s,
        duration_s=float(arrival_s[-1]),
        prompt_tokens=rng.integers(1, 200, 60),
        output_tokens=rng.integers(8, 40, 60),
    )


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    names = ["slackwidth", "fixed:largest"]
    return simulate_stream_policies(a_trace(2.0), PROFILE, names, OPTIONS)


def test_the_page_tells_streams(reports: list[dict[str, Any]]):
    page = render_page(reports, title="Streams")
    assert "streams with a fluidity of 0.9 or more" in page
    assert page.count('aria-label="Timeline of a stream"') == 2
    assert page.count('aria-label="Widths over time"') == 2
    assert "perplexity_ratio" in page
    assert "Fluidity against load" not in page


def test_a_search_for_the_capacity_draws_fluidity_against_load():
    goal = Goal("attainment", 0.9)
    found = find_stream_capacities(a_trace(1.0), PROFILE, ["slackwidth", "niyama"], goal, OPTIONS)
    assert all(len(r["load_curve"]) > len(r["capacity_tried"]) for r in found)
    page = render_page(found, title="Streams")
    assert page.count('aria-label="Fluidity against load"') == 1


def test_pictures_are_whole(reports: list[dict[str, Any]]):
    colours = {"e0.5": "#111111", "e0.75": "#222222", "e1": "#333333"}
    section = stream_section(reports, ["a", "b"], colours)
    assert section is not None
    assert [row["label"] for row in section["rows"]] == ["a", "b"]
    for panel in section["panels"]:
        assert len(panel["figures"]) == 2
        for figure in panel["figures"]:
            ET.fromstring(str(figure["svg"]))
    used = [width for width, n in reports[0]["subnets"].items() if n["queries"]]
    for width in used:
        assert colours[width] in str(section["panels"][0]["figures"][0]["svg"])


def test_a_page_without_streams_has_no_such_part():
    profile = LatencyProfile.load("profiles/superserve_resnet_2080ti.json")
    trace = Trace(arrival_s=np.linspace(0.0, 1.0, 200), duration_s=1.0)
    found = simulate_policies(trace, profile, ["maxbatch"], SimulationOptions(slo_s=0.036))
    assert stream_section(found, ["maxbatch"], {}) is None
    assert "<h2>Streams</h2>" not in render_page(found, title="Batches")


def outcome(i: int, missed: int, ids: tuple[str, ...]) -> StreamOutcome:
    times = tuple(1.0 + 0.1 * k for k in range(len(ids)))
    query = StreamQuery(i, 0.5, 30, len(ids), 1.0, 0.1)
    return StreamOutcome(
        i, "late", "", query, 0.5, times[-1], times, ids, (1.0,) * len(ids), missed, 20
    )


def test_the_least_fluent_stream_is_told_iteration_by_iteration():
    outcomes = [
        outcome(0, 2, ("a",) * 9),
        outcome(1, 5, ("a",) * 9),
        outcome(2, 5, ("a", "b") * 5),
        outcome(3, 9, ("a",) * 3),  # too short to tell
    ]
    chunks = (StreamChunk(2, 0, 20, False), StreamChunk(0, 40, 1, True))
    steps = [
        Step(0, "a", chunks, 0.4, 0.1),
        Step(1, "b", chunks, 0.6, 0.2, slack_s=0.3, budget=64),
        Step(2, "a", (StreamChunk(2, 30, 1, True),), 0.8, 0.1, slack_s=0.2),
        Step(3, "a", chunks, 9.0, 0.1),
    ]
    told = stream_timeline(outcomes, steps)
    assert told is not None
    assert told["query_id"] == 2
    assert told["fluidity"] == 0.75
    assert told["steps"] == {
        "start_s": [0.6, 0.8],
        "expected_s": [0.2, 0.1],
        "own_tokens": [20, 0],
        "tokens": [21, 1],
        "budget": [64, 0],
        "slack_s": [0.3, 0.2],
        "subnet_id": ["b", "a"],
    }
    assert stream_timeline(outcomes[3:], steps) is None
