"""Traces with token counts served as streams: queries, reports, capacity, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from slackfit.profile import LatencyProfile
from traces.cli import app
from traces.simulation.capacity import Goal
from traces.simulation.stream_simulation import (
    StreamOptions,
    StreamSlo,
    drawn_lengths,
    find_stream_capacities,
    simulate_stream_policies,
    stream_queries,
)
from traces.trace import Trace, TraceError

PROFILE = Path("profiles/smollm2_135m_example.json")
SLO = StreamSlo(ttft_s=1.0, tpot_s=0.25, ttft_per_token_s=0.01)


def a_trace(count: int = 60, rate: float = 0.8, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1.0 / rate, count))
    return Trace(
        arrival_s=arrival_s,
        duration_s=float(arrival_s[-1]),
        prompt_tokens=rng.integers(1, 200, count),
        output_tokens=rng.integers(1, 30, count),
        source="drawn",
    )


def test_rows_become_streams():
    trace = Trace(
        arrival_s=np.array([0.5, 2.0]),
        duration_s=3.0,
        prompt_tokens=np.array([100, 7]),
        output_tokens=np.array([5, 1]),
        query_class=np.array([0, 1]),
    )
    first, second = stream_queries(trace, SLO)
    assert (first.prompt_tokens, first.max_tokens, first.query_class) == (100, 5, 0)
    assert first.first_deadline_s == pytest.approx(0.5 + 1.0 + 100 * 0.01)
    assert (second.arrival_s, second.period_s, second.query_class) == (2.0, 0.25, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_tokens": None}, "no token counts.*--lengths"),
        ({"output_tokens": np.array([5, -1])}, "row 1 has 7 prompt and -1 output tokens"),
        ({"output_tokens": np.array([0, 0])}, "row 0 .* and 2 rows have less than one"),
    ],
)
def test_rows_that_are_no_streams(change: dict[str, Any], says: str):
    columns = {"prompt_tokens": np.array([100, 7]), "output_tokens": np.array([5, 1]), **change}
    trace = Trace(arrival_s=np.array([0.5, 2.0]), duration_s=3.0, **columns)
    with pytest.raises(TraceError, match=says):
        stream_queries(trace, SLO)


def test_lengths_are_scaled_and_that_is_said():
    scaled = a_trace().scale_lengths(0.1)
    before = a_trace()
    assert before.prompt_tokens is not None
    assert scaled.prompt_tokens is not None
    expected = np.maximum(np.rint(before.prompt_tokens * 0.1), 1)
    assert scaled.prompt_tokens.tolist() == expected.tolist()
    assert scaled.metadata["transforms"] == ["scale_lengths(0.1)"]
    with pytest.raises(TraceError, match="no token counts to scale"):
        Trace(arrival_s=np.array([0.5]), duration_s=1.0).scale_lengths(0.5)


def test_lengths_are_drawn_in_pairs():
    bare = Trace(arrival_s=np.arange(50.0), duration_s=50.0)
    source = a_trace(9)
    drawn = drawn_lengths(bare, source, np.random.default_rng(1))
    assert source.prompt_tokens is not None
    assert source.output_tokens is not None
    assert drawn.prompt_tokens is not None
    assert drawn.output_tokens is not None
    pairs = set(zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True))
    found = zip(drawn.prompt_tokens.tolist(), drawn.output_tokens.tolist(), strict=True)
    assert set(found) <= pairs
    assert drawn.metadata["transforms"] == ["lengths drawn from drawn"]
    with pytest.raises(TraceError, match="has no prompt_tokens"):
        drawn_lengths(bare, bare, np.random.default_rng(1))


def test_same_trace_same_reports():
    profile, options = LatencyProfile.load(PROFILE), StreamOptions(slo=SLO)
    names = ["slackwidth", "sarathi@budget=32"]
    one, two = (simulate_stream_policies(a_trace(), profile, names, options) for _ in range(2))
    assert one == two
    for report, name in zip(one, names, strict=True):
        assert report["policy"] == name
        assert report["num_queries"] == 60
        assert report["slo_streams_ms"] == {"ttft": 1000.0, "ttft_per_token": 10.0, "tpot": 250.0}
        json.dumps(report, allow_nan=False)


def test_capacity_is_where_the_goal_is_just_met():
    profile, options = LatencyProfile.load(PROFILE), StreamOptions(slo=SLO)
    goal = Goal("attainment", 0.95)
    (ours, fixed) = find_stream_capacities(
        a_trace(), profile, ["slackwidth", "fixed:largest"], goal, options
    )
    assert ours["slo_attainment"] >= 0.95
    assert ours["capacity_qps"] > fixed["capacity_qps"] > 0.3


def command(*more: str) -> Any:
    args = ["simulate", "--profile", str(PROFILE), "--trace", "poisson:rate=1,duration=30", *more]
    return CliRunner().invoke(app, args)


def test_the_command_serves_streams(tmp_path: Path):
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("arrival_s,prompt_tokens,output_tokens\n0,800,90\n1,64,30\n")
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    done = command(
        *("--ttft-ms", "900", "--tpot-ms", "250", "--lengths", str(lengths), "--thin", "0.9"),
        *("--length-scale", "0.25", "--policy", "slackwidth,edf", "--kv-tokens", "4096"),
        *("--json", str(out), "--html", str(page), "--seed", "3"),
    )
    assert done.exit_code == 0, done.output
    reports = json.loads(out.read_text())
    assert [report["policy"] for report in reports] == ["slackwidth", "edf"]
    said = str(reports[0]["trace"])
    assert all(text in said for text in ("thin(0.9)", "scale_lengths(0.25)", "lengths drawn"))
    assert reports[0]["config"]["length_scale"] == 0.25
    assert reports[0]["settings"]["kv_tokens"] == 4096
    assert "slackwidth" in page.read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "say when their outputs are due with --ttft-ms and --tpot-ms"),
        (("--ttft-ms", "9", "--tpot-ms", "9", "--slo-ms", "30"), "without --slo-ms"),
        (("--ttft-ms", "9", "--tpot-ms", "9", "--workers", "2"), "on one device"),
        (("--ttft-ms", "9", "--tpot-ms", "9"), "no token counts"),
        (("--ttft-ms", "9", "--tpot-ms", "0"), "TPOT must be a finite time above 0"),
    ],
)
def test_what_the_command_does_not_take(more: tuple[str, ...], says: str):
    done = command(*more)
    assert done.exit_code == 2
    assert says in done.output.replace("\n", " ")


def test_options_of_streams_need_a_profile_of_iterations():
    args = ["simulate", "--profile", "profiles/superserve_resnet_2080ti.json"]
    args += ["--trace", "poisson:rate=1,duration=3", "--slo-ms", "36", "--tpot-ms", "9"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2
    assert "has no iterations" in done.output.replace("\n", " ")
