"""`supernet replay --also-simulate` against a real server whose device sleeps as profiled."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve.cli import build_app
from serve.commands.live_replay import LiveReplay, simulated_server
from serve.commands.replay_command import _about_fidelity
from slackfit.profile import LatencyProfile
from traces.generators.arrivals import gamma
from traces.open_loop.target import Model, TensorSpec
from traces.trace import TraceError

COMMAND = [sys.executable, "-m", "serve"]
SPEC = "poisson:rate=60,duration=3,slo_ms=150,class=1"


@pytest.fixture
def settings() -> list[str]:
    """Options of the server, beside those that every test here needs."""
    return []


@pytest.fixture
def url(profile_file: Path, settings: list[str]) -> Iterator[str]:
    """A server of the tiny profile, ten times as slow: 10 to 40 ms for one query."""
    fields = json.loads(profile_file.read_text())
    for subnet in fields["subnets"]:
        subnet["latency_ms"] = {"p50": [10 * ms for ms in subnet["latency_ms"]["p50"]]}
    profile_file.write_text(json.dumps(fields))
    words = ["serve", "--no-ray", "--port", "0", "--device", "timed", "--profile"]
    process = subprocess.Popen(
        [*COMMAND, *words, str(profile_file), "--set", "input_shape=1,2,2", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://[\d.:]+", process.stdout.readline())
    assert found
    yield found.group()
    process.kill()
    process.communicate()


def replay(url: str, out: Path, *options: str) -> Result:
    words = ["replay", "--trace", SPEC, "--url", url, "--out", str(out), *options]
    return CliRunner().invoke(build_app(words), words)


@pytest.mark.alone
@pytest.mark.slow
def test_the_simulator_serves_the_same_trace_and_the_error_is_told(url, profile_file, tmp_path):
    done = replay(url, tmp_path, "--also-simulate", "--profile", str(profile_file))
    assert done.exit_code == 0, done.stderr
    assert "simulated from the profile:\n  p50_ms" in done.stdout
    live, simulated = json.loads((tmp_path / "report.json").read_text())
    assert (live["mode"], simulated["mode"]) == ("live", "simulated")
    assert live["num_queries"] == simulated["num_queries"]
    table = live["fidelity"]
    assert abs(table["p50_ms"]["error"]) < 0.5  # a shared machine; docs/traces.md has a quiet one
    assert abs(table["mean_serving_accuracy"]["error"]) < 0.1
    assert 0 < live["fidelity_wire_ms"] < 50
    assert live["batch_time_over_profile"]["p50"] == pytest.approx(1.0, abs=0.5)
    rows = pq.read_table(tmp_path / "timeline.parquet").to_pylist()
    assert len(rows) == live["num_queries"]
    for row in rows:
        assert row["query_class"] == 1
        assert row["deadline_s"] - row["intended_s"] == pytest.approx(0.15)
        assert row["intended_s"] <= row["sent_s"] < row["received_s"]
        is_on_time = row["received_s"] <= row["deadline_s"]
        if row["subnet"] is not None:
            assert (row["outcome"] == "on_time") == is_on_time
            assert row["received_s"] - row["sent_s"] >= row["queue_s"] + row["execution_s"] - 1e-3
            assert row["batch_size"] >= 1
    assert sum(row["outcome"] == "on_time" for row in rows) == live["outcomes"]["on_time"]


def test_another_profile_than_the_servers_is_refused(url, profile_file, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(profile_file.read_text().replace('"tiny"', '"other"'))
    done = replay(url, tmp_path / "out", "--also-simulate", "--profile", str(other))
    assert done.exit_code == 2
    assert "the server serves with profile 'tiny', the one given is 'other'" in done.stderr
    alone = replay(url, tmp_path / "out", "--also-simulate")
    assert (alone.exit_code, "go together" in alone.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_repeats_of_a_run_are_told_apart_and_their_range_is_said(url, tmp_path):
    trace = ["--trace", "poisson:rate=60,duration=1,slo_ms=400,tenant=web"]
    done = replay(url, tmp_path, *trace, "--repeat", "2", "--max-lag-ms", "1000")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"attainment over 2 runs: [\d.]+.% \(", done.stdout)
    reports = json.loads((tmp_path / "report.json").read_text())
    assert [report["repeat"] for report in reports] == [1, 2]
    for report, name in zip(reports, ("timeline", "timeline-2"), strict=True):
        rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert len(rows) == report["num_queries"] == report["tenants"]["web"]["num_queries"]
        assert {row["tenant"] for row in rows} == {"web"}
        assert report["generator_loop_lag_ms"]["p99"] >= 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Repeats</h2>" in page
    assert "repeat 2" in page


@pytest.mark.alone
@pytest.mark.parametrize("settings", [["--max-queue", "3", "--subnets", "small"]])
def test_the_twin_has_the_settings_of_the_server(url, profile_file, tmp_path):
    trace = ["--trace", "poisson:rate=400,duration=1,slo_ms=400"]
    done = replay(url, tmp_path, *trace, "--also-simulate", "--profile", str(profile_file))
    assert done.exit_code == 0, done.stderr
    assert "note:" not in done.stdout
    live, simulated = json.loads((tmp_path / "report.json").read_text())
    assert live["config"]["server_settings"]["max_queue"] == 3
    for report in (live, simulated):  # by default a thousand wait, and none is refused for that
        assert report["reasons"].get("queue_full", 0) > 50, report["reasons"]
        assert list(report["subnets"]) == ["small"]
    assert abs(live["fidelity"]["slo_attainment"]["error"]) < 0.15


def test_of_an_older_server_the_defaults_are_simulated(profile: LatencyProfile):
    tensor = TensorSpec(name="input", datatype="UINT8", shape=(-1, 1, 2, 2))
    about = {"policy": "slackfit", "profile": "tiny"}
    model = Model(name="tiny", tensor=tensor, versions=("small", "large"), parameters=about)
    server = simulated_server(model, profile, 0.001)
    assert (server.policy, server.max_queue, server.drop_hopeless) == ("slackfit", 1000, True)
    assert server.profile.subnet_ids == ("small", "large")
    assert server.profile.batch_sizes == profile.batch_sizes
    (note,) = _about_fidelity({"fidelity": {}, "config": {"server_settings": None}})[:1]
    assert note.startswith("note: the server does not say its settings")


def test_the_twin_of_several_servers_is_refused(profile):
    """It would be of one device, and every figure beside it wrong."""
    live = LiveReplay(trace=gamma(10.0, 0.0, 1.0), url="http://a:1,http://b:1", twin=profile)
    with pytest.raises(TraceError, match="is of one server; give one address"):
        asyncio.run(live.run())
