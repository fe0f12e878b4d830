"""Parts of a run: by session, by tokens and size in bands, a query of several samples weighed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.query import Outcome
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import latency_all_ms, most_waiting, with_figures
from traces.report.group_figures import GROUP_KEYS, OTHERS, UNKNOWN, bands
from traces.report.group_tables import groups
from traces.texts import Texts
from traces.trace import Trace

COUNT = 12


def ended(i: int, *, is_on_time: bool, samples: int = 1) -> Outcome:
    status, took_s = ("on_time", 0.05) if is_on_time else ("late", 0.2)
    at_s = float(i)
    times = (at_s, at_s + 0.1, at_s, at_s + took_s)
    return Outcome(i, status, "", *times, "s", 0.9, samples, 0, samples)


def report_of(outcomes: list[Outcome], **columns) -> dict:
    trace = Trace(arrival_s=np.arange(float(COUNT)), duration_s=float(COUNT), **columns)
    whole = summarize(outcomes, policy="p", slo_s=0.1, duration_s=float(COUNT), seed=0, profile="t")
    return with_figures(whole, outcomes, trace)


def test_each_column_that_a_trace_has_parts_the_run() -> None:
    outcomes = [ended(i, is_on_time=i < 6) for i in range(COUNT)]
    report = report_of(
        outcomes,
        session=Texts.of(["a"] * 6 + ["b"] * 4 + [""] * 2),
        prompt_tokens=np.array([0, 1, 3, 4, 15, 16, 63, 64, 255, 256, -1, -1]),
        output_tokens=np.array([100] * 6 + [20] * 6),
        size=np.array([0.5, 0.5, 1, 2, 4, 4, 4, 4, 5e6, 5e6, math.nan, math.nan]),
    )
    assert {name: part["num_queries"] for name, part in report["sessions"].items()} == {
        "a": 6, "b": 4, UNKNOWN: 2,
    }  # fmt: skip
    assert [report["sessions"][name]["slo_attainment"] for name in ("a", "b")] == [1.0, 0.0]
    assert {name: part["num_queries"] for name, part in report["prompt_tokens"].items()} == {
        "0": 1, "1 to 3": 2, "4 to 15": 2, "16 to 63": 2, "64 to 255": 2, "256 to 1,023": 1,
        UNKNOWN: 2,
    }  # fmt: skip
    assert report["output_tokens"]["64 to 255"]["slo_attainment"] == 1.0
    assert report["output_tokens"]["16 to 63"]["slo_attainment"] == 0.0
    assert {name: part["num_queries"] for name, part in report["sizes"].items()} == {
        "below 1": 2, "1 to below 4": 2, "4 to below 16": 4,
        "4,194,304 to below 16,777,216": 2, UNKNOWN: 2,
    }  # fmt: skip
    assert not {"classes", "tenants"} & set(report), "the trace has none"
    schema = json.loads(Path("docs/schemas/report.schema.json").read_text(encoding="utf-8"))
    assert set(GROUP_KEYS) <= set(schema["items"]["properties"])
    parts = {key: report[key] for key in GROUP_KEYS if key in report}
    for key, part in parts.items():
        jsonschema.validate(part, schema["items"]["properties"][key])
    ((label, tables),) = (run.values() for run in groups([report, report_of(outcomes)], "ab"))
    assert label == "a"
    assert [t["what"] for t in tables] == ["Session", "Prompt tokens", "Output tokens", "Size"]
    assert [row["name"] for row in tables[0]["rows"]] == ["a", "b", UNKNOWN]


def test_bands_are_the_same_whatever_else_is_there() -> None:
    values = 4 ** np.arange(20)
    for band in (values, values * 4 - 1):
        names = bands(np.append(band, 0)).names
        assert names == ["0", *(f"{4**k:,} to {4 ** (k + 1) - 1:,}" for k in range(20))]


def test_a_request_of_sixteen_counts_sixteen_in_every_figure() -> None:
    """Half of the queries are in time, and they hold four fifths of the samples."""
    outcomes = [ended(i, is_on_time=i % 2 == 0, samples=4 if i % 2 == 0 else 1) for i in range(12)]
    report = report_of(outcomes, tenant=Texts.of(["a", "b"] * 6), session=Texts.of(["x"] * 12))
    assert report["num_queries"] == report["outcomes"]["on_time"] + 6 == 30
    assert report["slo_attainment"] == pytest.approx(0.8)
    assert report["tenants"]["a"]["num_queries"] == 24
    assert report["sessions"]["x"]["slo_attainment"] == pytest.approx(0.8)
    assert report["latency_ms"]["p95"] == pytest.approx(200)
    assert latency_all_ms(outcomes)["p50"] == pytest.approx(50)
    waiting = [o._replace(start_s=o.arrival_s + 0.04) for o in outcomes]
    assert most_waiting(waiting, np.arange(13.0)) == [4, 1] * 6
    many = [o._replace(query_id=i) for i, o in enumerate(outcomes * 10)]
    zoom = burst_zoom(sorted(many, key=lambda o: o.arrival_s), float(COUNT))
    assert zoom is not None
    assert zoom["missed"] == 10


def test_one_who_is_called_like_the_unknown_is_told_apart() -> None:
    outcomes = [ended(i, is_on_time=True) for i in range(COUNT)]
    report = report_of(outcomes, tenant=Texts.of([UNKNOWN] * 5 + [""] * 3 + [OTHERS] * 4))
    assert {name: part["num_queries"] for name, part in report["tenants"].items()} == {
        repr(UNKNOWN): 5, UNKNOWN: 3, repr(OTHERS): 4,
    }  # fmt: skip
