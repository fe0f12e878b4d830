"""What a replay keeps in memory: some hundred bytes a query, from its sending to its page."""

from __future__ import annotations

import subprocess
import sys

import pytest

REPLAY = """
import asyncio, sys
import numpy as np
from slackfit.metrics import summarize
from traces.burstiness import trace_summary
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay import ReplayReply, replay
from traces.open_loop.replay_options import ReplayOptions
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import with_figures
from traces.report.intervals import attainment_intervals
from traces.report.page import render_page
from traces.trace import Trace


class Target:
    def __init__(self):
        self.count = 0

    async def prepare(self, payloads):
        pass

    async def infer(self, request):
        self.count += 1
        return ReplayReply(status="ok", subnet_id=f"s{self.count % 9}", accuracy=0.7, batch_size=4,
                           queue_s=0.001, execution_s=0.002, batch_id=str(self.count // 4))

    async def close(self):
        pass


class Clock:
    # Time passes only where it is waited for, so that a long trace is sent in no time.
    def __init__(self):
        self.at_s = 0.0

    def now_s(self):
        return self.at_s

    async def sleep_until(self, at_s):
        self.at_s = max(self.at_s, at_s)
        await asyncio.sleep(0)


def run(count):
    trace = Trace(arrival_s=np.arange(count) * 0.002, duration_s=count * 0.002)
    payloads = Payloads(np.zeros((8, 3), np.uint8), np.zeros(8, np.int64))
    options = ReplayOptions(slo_s=0.1)
    result = asyncio.run(replay(trace, Target(), payloads, options, clock=Clock()))
    report = summarize(result.outcomes, policy="p", slo_s=0.1, duration_s=result.duration_s, seed=0,
                       profile="t", trace=trace_summary(trace), **result.extra())
    report["slo_attainment_95"] = attainment_intervals(report)
    report["zoom"] = burst_zoom(result.outcomes, result.duration_s)
    report = with_figures(report, result.outcomes, trace)
    assert report["num_queries"] == report["outcomes"]["on_time"] == count
    return len(render_page([report], title="t"))


def peak_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


run(200)  # everything is imported, and has drawn its first picture
before = peak_bytes()
run(int(sys.argv[1]))
print(peak_bytes() - before)
"""


def grown_bytes(count: int) -> int:
    command = [sys.executable, "-c", REPLAY, str(count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_fifty_thousand_queries_take_no_more_than_their_share() -> None:
    assert grown_bytes(50_000) <= 0.05 * 300e6 + 4e6, "some of it is there for any count"


@pytest.mark.slow
def test_a_million_queries_take_300_megabytes() -> None:
    assert grown_bytes(1_000_000) <= 300e6
