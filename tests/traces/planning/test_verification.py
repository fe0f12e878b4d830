"""What a plan foretells of a live server, and how it is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from slackfit.profile import LatencyProfile
from traces.cli import app as traces_app
from traces.commands.plan_command import OnProgress, plan_command_with
from traces.generators.arrivals import gamma
from traces.open_loop.live_twin import LiveServer
from traces.open_loop.replay_options import ReplayOptions
from traces.planning.page import plan_page
from traces.planning.plan_request import PlanRequest
from traces.planning.promise import Promise, parse_promise
from traces.planning.verification import (
    LOADS,
    LoadForecast,
    at_rate,
    capacity_qps,
    forecasts,
    judged,
    verification_lines,
)
from traces.trace import TraceError

OPTIONS = ReplayOptions(slo_s=0.36, warmup_s=1.0)


@pytest.fixture(scope="module")
def server() -> LiveServer:
    path = Path("profiles/superserve_resnet_2080ti.json")
    return LiveServer(
        policy="drainfit", profile=LatencyProfile.load(path).scaled(10.0), wire_s=0.002,
        reply_allowance_s=0.005, max_allowance=0.1, max_queue=1000, drop_hopeless=None,
        triage=True, correct_latency=True, door_s=0.0003,
    )  # fmt: skip


def test_the_first_arrivals_are_taken_at_another_rate():
    trace = gamma(900.0, 4.0, 10.0)
    part = at_rate(trace, 50.0, 4.0)
    assert len(part) == 200
    assert part.rate_qps == pytest.approx(50.0)
    gaps = np.diff(trace.arrival_s[:200])
    assert np.diff(part.arrival_s) / gaps == pytest.approx(part.arrival_s[1] / trace.arrival_s[1])


def test_a_trace_of_too_few_arrivals_follows_itself():
    trace = gamma(900.0, 4.0, 2.0)
    twice = at_rate(trace, 100.0, 0.02 * len(trace))
    assert len(twice) == 2 * len(trace)
    assert twice.duration_s == pytest.approx(0.02 * len(trace))
    first, second = np.split(np.diff(twice.arrival_s, prepend=0.0), 2)
    assert second[1:] == pytest.approx(first[1:])
    assert twice.rate_qps == pytest.approx(100.0)
    assert len(at_rate(replace(trace, slo_s=np.ones(len(trace))), 100.0, 50.0).slo_s) == 5000


def test_what_a_replay_can_not_carry_is_not_verified(server):
    """Floors and groups had been left out of the capacity without a word."""
    for text in ("attainment>=0.9,floor>=0.7", "attainment>=0.9,1:attainment>=0.99"):
        with pytest.raises(TraceError, match="names floors or groups"):
            capacity_qps(gamma(900.0, 4.0, 3.0), [server], parse_promise(text), OPTIONS, 1.0)


def test_loads_are_shares_of_the_highest_rate_that_keeps_the_promise(server):
    trace, promise = gamma(900.0, 4.0, 30.0), Promise(0.99, 0.77)
    capacity = capacity_qps(trace, [server], promise, OPTIONS, 8.0)
    found = forecasts(trace, [server], capacity, OPTIONS, 8.0)
    assert [f.trace.rate_qps / capacity for f in found] == pytest.approx(LOADS)
    rates = [f.figures["mean_serving_accuracy"] for f in found]
    assert rates[0] > rates[-1] >= promise.accuracy - 0.005
    # Of a short part, too, the warm-up is not all of it; a short trace is none either.
    steady = gamma(900.0, 1.0, 30.0)
    long = capacity_qps(steady, [server], promise, OPTIONS, 8.0)
    short = capacity_qps(steady.window(0.0, 0.3), [server], promise, OPTIONS, 1.0)
    assert 0.6 * long < short < 1.7 * long
    wrong = replace(server, policy="fixed:largest", door_s=1.0)
    with pytest.raises(TraceError, match=r"policy .fixed:largest. keeps attainment>=0.99.* at no"):
        capacity_qps(trace, [wrong], promise, OPTIONS, 1.0)


def test_a_forecast_that_comes_true_is_within_and_one_that_does_not_is_beyond(server):
    forecast = forecasts(gamma(900.0, 4.0, 30.0), [server], 120.0, OPTIONS, 8.0)[1]
    exact = judged(forecast, forecast.outcomes, "")
    assert exact["is_within"]
    assert set(exact["error"].values()) == {0.0}
    assert not judged(forecast, forecast.outcomes, "the generator was late")["is_within"]
    slower = [o._replace(finish_s=o.finish_s + 0.05) for o in forecast.outcomes]
    assert not judged(forecast, slower, "")["is_within"]
    fewer = [o._replace(status="late") if i % 100 == 0 else o for i, o in
             enumerate(forecast.outcomes)]  # fmt: skip
    assert judged(forecast, fewer, "")["error"]["slo_attainment"] > 0.005
    assert not judged(forecast, fewer, "")["is_within"]
    # At 95 % three points of attainment are allowed, and latencies are not judged.
    assert judged(replace(forecast, load=0.95), fewer, "")["is_within"]


def measured(*urls: str) -> dict[str, Any]:
    """What a verification says of servers."""
    about = {"policy": "drainfit", "device": "timed", "request_ms": 0.3, "idle_ms": 2.0}
    return {
        "url": ",".join(urls), "cpu": "EPYC x2", "load_average": 0.5, "capacity_qps": 120.0,
        "servers": [{"url": url, **about} for url in urls],
    }  # fmt: skip


def test_the_table_says_machine_door_and_errors(server):
    forecast = forecasts(gamma(900.0, 4.0, 30.0), [server], 120.0, OPTIONS, 2.0)[0]
    about = measured("http://a:1")
    before = verification_lines({**about, "levels": [forecast.to_json()]})
    assert before[0] == "EPYC x2, load 0.50; capacity 120.0 queries/s"
    assert "0.300 ms of each request" in before[1]
    assert before[3].split()[:3] == ["50%", "60.0", "p50_ms"]
    assert "%" not in before[3].split()[-1]
    row = judged(forecast, forecast.outcomes, "too late")
    after = verification_lines({**about, "levels": [row]})
    assert after[3].endswith("+0.0%")
    assert after[-1].endswith("INVALID: too late")
    two = verification_lines({**measured("http://a:1", "http://b:2"), "levels": []})
    assert [line.split()[0] for line in two[1:3]] == ["http://a:1:", "http://b:2:"]


class FakeVerifier:
    """Foretells a load and finds it so; `wrong` is refused before the plan, `ends` after a load."""

    def __init__(
        self,
        forecast: LoadForecast,
        path: Path,
        wrong: str = "",
        ends: type[BaseException] | None = None,
    ) -> None:
        self._forecast = forecast
        self._path = path
        self._wrong = wrong
        self._ends = ends
        self.seen: list[dict[str, Any] | None] = []

    def _look(self) -> None:
        self.seen.append(json.loads(self._path.read_text()) if self._path.exists() else None)

    def check(self, request: PlanRequest, urls: str) -> None:
        assert [offer.name for offer in request.catalog.offers] == ["superserve_resnet_2080ti"]
        self._look()
        if self._wrong:
            raise TraceError(self._wrong)

    def verify(
        self,
        request: PlanRequest,
        plan: dict[str, Any],
        urls: str,
        duration_s: float,
        on_progress: OnProgress,
    ) -> dict[str, Any]:
        assert (urls, duration_s) == ("http://a:1", 7.0)
        assert request.profile_of(plan["device"]).name == "superserve_resnet_2080ti"
        forecast, about = self._forecast, measured("http://a:1")
        self._look()
        on_progress({**about, "levels": [forecast.to_json()] * 2})
        self._look()
        row = judged(forecast, forecast.outcomes, "")
        on_progress({**about, "levels": [row, forecast.to_json()]})
        self._look()
        if self._ends is not None:
            raise self._ends("the server is gone")
        return {**about, "levels": [row]}


WORDS = (
    "--profile", "profiles/superserve_resnet_2080ti.json", "--slo-ms", "36", "--trace",
    "gamma:rate=1000,cv2=1,duration=2", "--slo", "attainment>=0.9", "--policies", "slackfit",
    "--verify", "http://a:1", "--verify-s", "7",
)  # fmt: skip


@pytest.fixture(scope="module")
def foretold(server: LiveServer) -> LoadForecast:
    return forecasts(gamma(900.0, 4.0, 30.0), [server], 120.0, OPTIONS, 2.0)[0]


def run_with(verifier: FakeVerifier, *more: str) -> Any:
    """The command with this verifier."""
    app = typer.Typer()
    app.command()(plan_command_with(verifier))
    return CliRunner().invoke(app, [*WORDS, *more])


def test_the_plans_file_holds_the_forecast_before_anything_is_replayed(foretold, tmp_path: Path):
    path = tmp_path / "plan.json"
    verifier = FakeVerifier(foretold, path)
    result = run_with(verifier, "--json", str(path))
    assert result.exit_code == 0, result.stderr
    before, planned, told, replayed = verifier.seen
    assert before is None
    assert planned is not None
    assert told is not None
    assert replayed is not None
    assert planned["workers"] >= 1
    assert "verification" not in planned
    assert ["live" in level for level in told["verification"]["levels"]] == [False, False]
    assert ["live" in level for level in replayed["verification"]["levels"]] == [True, False]
    made = json.loads(path.read_text())
    assert made["verification"]["levels"][0]["is_within"]
    assert result.stderr.count("foretold:") == 1
    assert "+0.0%" in result.stdout
    assert result.stdout.count("the promise holds up to") == 1
    assert "<h2>Foretold and live</h2>" in plan_page(made)
    refused = CliRunner().invoke(traces_app, ["plan", *WORDS])
    for result in (refused, run_with(verifier, "--stream")):
        assert result.exit_code == 2
        assert (
            "--verify goes without --stream, and with the command `supernet plan`" in result.stderr
        )


def test_servers_that_can_not_be_verified_on_are_refused_before_the_plan(foretold, tmp_path: Path):
    path = tmp_path / "plan.json"
    result = run_with(FakeVerifier(foretold, path, wrong="no such server"), "--json", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: no such server\n"
    assert not path.exists()
    floored = run_with(FakeVerifier(foretold, path), "--slo", "attainment>=0.9,floor>=0.7")
    assert "names floors or groups" in floored.stderr


@pytest.mark.parametrize("ends", [TraceError, KeyboardInterrupt])
def test_a_plan_outlives_its_verification(foretold, tmp_path: Path, ends: type[BaseException]):
    """It had been thrown away with it."""
    path = tmp_path / "plan.json"
    result = run_with(FakeVerifier(foretold, path, ends=ends), "--json", str(path))
    assert result.exit_code != 0
    assert "with slackfit: " in result.stdout
    made = json.loads(path.read_text())
    assert ["live" in level for level in made["verification"]["levels"]] == [True, False]
    on_stdout = run_with(FakeVerifier(foretold, tmp_path / "no.json", ends=ends), "--json", "-")
    assert json.loads(on_stdout.stdout)["verification"] == made["verification"]
