"""The replayer against real servers in processes of their own, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

from serve.client.dial import Dial, dial
from serve.commands.live_replay import LiveReplay
from traces.generators.arrivals import gamma, poisson
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.sender_processes import SenderError, processes_for, replay_in_processes
from traces.open_loop.timeline import COLUMNS
from traces.trace import TraceError

pytestmark = pytest.mark.alone

PAYLOADS = np.arange(32, dtype=np.float32).reshape(8, 4)


@pytest.fixture
def serve_trivially() -> Iterator[Callable[..., str]]:
    """`serve_trivially(*arguments)` starts a trivial server and returns its URL."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> str:
        script = Path(__file__).with_name("trivial_server.py")
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    def wait() -> None:
        assert started[-1].stdout is not None
        started[-1].stdout.readline()

    start.wait_for_the_first = wait  # type: ignore[attr-defined]
    yield start
    for process in started:
        process.kill()
        process.communicate()


def run(url: str, *, trace, data=None, num_processes=None, **options):
    chosen = ReplayOptions(**options)
    replay = LiveReplay(
        trace=trace, url=url, options=chosen, data=data, num_processes=num_processes
    )
    return asyncio.run(replay.run())


def test_any_server_of_the_protocol_can_be_replayed_against(serve_trivially, tmp_path):
    np.save(tmp_path / "images.npy", PAYLOADS)
    np.save(tmp_path / "labels.npy", np.arange(8) % 2)
    (report,), result = run(
        serve_trivially(), trace=gamma(100.0, 0.0, 0.4), slo_s=0.5, data=tmp_path
    )
    assert report["outcomes"]["on_time"] == 40
    assert report["measured_accuracy"] == 0.5  # it always answers class 1
    assert report["config"]["model"] == "t"
    assert report["subnets"] == {}
    assert not report["is_served_accuracy_known"]
    schema = json.loads(Path("docs/schemas/report.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps([report])), schema)
    assert {o.reason for o in result.outcomes} == {""}


def test_noise_fits_the_model_and_samples_that_do_not_are_refused(serve_trivially, tmp_path):
    url = serve_trivially()
    trace = gamma(50.0, 0.0, 0.1)
    (report,), _ = run(url, trace=trace, slo_s=0.5)
    assert report["outcomes"]["on_time"] == 5
    np.save(tmp_path / "images.npy", np.zeros((2, 5), np.uint8))
    with pytest.raises(TraceError, match=r"samples have shape \[5\], the model takes \[4\]"):
        run(url, trace=trace, slo_s=0.5, data=tmp_path)
    np.save(tmp_path / "images.npy", np.zeros((2, 4), np.float64))
    with pytest.raises(TraceError, match="samples are float64, the model takes FP32"):
        run(url, trace=trace, slo_s=0.5, data=tmp_path)


def test_a_server_that_stands_still_shows_the_whole_delay(serve_trivially):
    """No coordinated omission: a second's stand is in every query that arrived meanwhile."""
    trace = gamma(200.0, 0.0, 2.0)
    (report,), result = run(serve_trivially("--stall", "0.5,1"), trace=trace, slo_s=0.1)
    latency_s = np.array([o.latency_s for o in result.outcomes])
    stalled_at_s = trace.arrival_s[np.argmax(latency_s > 0.5)]
    assert stalled_at_s == pytest.approx(0.5, abs=0.1)
    during = (trace.arrival_s > stalled_at_s) & (trace.arrival_s < stalled_at_s + 0.9)
    left_s = stalled_at_s + 1.0 - trace.arrival_s
    assert during.sum() > 170
    assert (latency_s[during] > left_s[during] - 0.03).all()
    assert report["latency_ms"]["max"] > 950
    # Half of the run's queries waited, and say so: a closed loop would have sent and lost one.
    assert 0.4 < report["slo_attainment"] < 0.6
    assert report["generator_lag_ms"]["p50"] < 5  # the sender itself never stood still


def test_garbage_instead_of_answers_is_a_reason_not_an_end(serve_trivially):
    (report,), _ = run(
        serve_trivially("--after", "10", "garbage"), trace=gamma(100.0, 0.0, 0.3), slo_s=0.5
    )
    assert report["outcomes"]["on_time"] == 10
    assert report["reasons"] == {
        "unreadable answer: neither JSON nor the binary extension's form": 20
    }


def test_a_server_that_goes_away_leaves_a_report_of_what_it_answered(serve_trivially):
    (report,), _ = run(
        serve_trivially("--after", "10", "break"), trace=gamma(100.0, 0.0, 0.3), slo_s=0.5
    )
    assert report["outcomes"]["on_time"] == 10
    assert report["outcomes"]["failed"] == 20
    assert all(reason.startswith("connection: ") for reason in report["reasons"])


def test_refused_queries_are_sent_again_inside_their_slack_only(serve_trivially):
    options = {"trace": gamma(40.0, 0.0, 0.5), "max_retries": 3}
    (patient,), result = run(
        serve_trivially("--after", "18", "refuse"), slo_s=0.5, num_processes=1, **options
    )
    # 19 is refused, sent again as 20 and served: one retry, which is the share of them allowed.
    assert patient["num_retries"] in (1, 2)
    again = [a for a in result.answers if a.attempts > 1]
    assert {a.reply.status for a in again} <= {"ok", "rejected"}
    assert any(a.reply.status == "ok" and a.finish_s - a.sent_s > 0.02 for a in again)
    (hasty,), _ = run(serve_trivially("--after", "18", "refuse"), slo_s=0.015, **options)
    assert hasty["num_retries"] == 0  # the server asks for 20 ms, the deadline leaves 15


def test_several_processes_send_one_trace(serve_trivially):
    trace = poisson(300.0, 1.0, seed=2)
    told = []
    options = ReplayOptions(slo_s=0.2, warmup_s=0.2)
    dialled, payloads = Dial(serve_trivially(), "t"), Payloads(PAYLOADS)
    result = asyncio.run(
        replay_in_processes(trace, dialled, 2, payloads, options, progress=told.append)
    )
    kept = np.flatnonzero(trace.arrival_s >= 0.2)
    assert [o.query_id for o in result.outcomes] == kept.tolist()
    np.testing.assert_allclose([o.arrival_s for o in result.outcomes], trace.arrival_s[kept] - 0.2)
    assert {o.status for o in result.outcomes} == {"on_time"}
    assert len(result.cpu_s) == 2
    assert min(result.cpu_s) > 0
    assert told[-1].sent == told[-1].on_time == told[-1].total == len(trace)


def test_a_sender_that_can_not_start_says_why(serve_trivially):
    trace, rest = gamma(10.0, 0.0, 0.2), (Payloads(PAYLOADS), ReplayOptions(slo_s=0.2))
    for dialled, message in (
        (Dial("http://127.0.0.1:9", "t"), "no answer"),
        (Dial(serve_trivially(), "u"), "404 unknown"),
    ):
        with pytest.raises(SenderError, match=message):
            asyncio.run(replay_in_processes(trace, dialled, 2, *rest))


def test_the_rate_says_how_many_senders_there_are():
    assert processes_for(gamma(100.0, 0.0, 2.0)) == 1
    assert processes_for(gamma(4000.0, 0.0, 2.0)) == min(8, os.cpu_count() or 1)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_interrupt_leaves_a_valid_report_and_timeline(serve_trivially, tmp_path, processes):
    words = ["replay", "--trace", "poisson:rate=100,duration=60", "--slo-ms", "200"]
    words += ["--url", serve_trivially(), "--out", str(tmp_path), "--processes", processes]
    process = subprocess.Popen([sys.executable, "-m", "serve", *words], stdout=subprocess.PIPE)
    serve_trivially.wait_for_the_first()  # type: ignore[attr-defined]
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"generator: lag p50" in output
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["is_partial"]
    assert sorted(shlex.split(report["command"])) == sorted(["supernet", *words])
    assert 0 < report["num_queries"] < 500
    assert report["generator_processes"] == int(processes)
    rows = pq.read_table(tmp_path / "timeline.parquet")
    assert tuple(rows.column_names) == COLUMNS
    assert rows.num_rows == report["num_queries"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_many_open_requests_do_not_slow_the_sender_down(serve_trivially):
    """Its cost per query, in processor time, is the same with hundreds open as with none."""
    trace = poisson(400.0, 3.0, seed=3)
    (calm,), _ = run(serve_trivially(), trace=trace, slo_s=0.1, num_processes=1)
    (piled,), _ = run(serve_trivially("--stall", "0,2"), trace=trace, slo_s=0.1, num_processes=1)
    assert calm["generator_capacity_qps"] > 800
    assert piled["generator_capacity_qps"] > 0.4 * calm["generator_capacity_qps"]


@pytest.mark.slow  # needs two cores that nobody else uses
def test_the_generator_keeps_its_times_at_500_queries_a_second(serve_trivially):
    url = serve_trivially()
    lags = []
    for _ in range(3):
        (report,), _ = run(url, trace=poisson(500.0, 5.0, seed=3), slo_s=0.1, warmup_s=0.5)
        lags.append(report["generator_lag_ms"]["p99"])
        print(f"lag {report['generator_lag_ms']}, {report['generator_capacity_qps']:,.0f}/s")
    assert min(lags) <= 2.0


def test_a_wrong_model_or_address_is_said_before_anything_is_sent(serve_trivially):
    url = serve_trivially()
    for where, model, message in (
        (url, "u", "404 unknown"),
        ("http://127.0.0.1:9", None, "no answer"),
        (f"{url}/v3", None, "404"),
    ):
        with pytest.raises(Exception, match=message):
            asyncio.run(dial(where, model))
