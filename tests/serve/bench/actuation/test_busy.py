"""The busy thread is busy for the share of time that it is told; the process is put back after."""

import sys
import time

import pytest

from serve.bench.actuation.busy import BusyThread, busy_rows


def parsed_within(thread: BusyThread, percent: int, seconds: float) -> int:
    thread.percent = percent
    time.sleep(0.02)
    before = thread.parsed
    time.sleep(seconds)
    return thread.parsed - before


@pytest.mark.alone
def test_the_thread_parses_as_much_as_it_is_told():
    thread = BusyThread()
    with thread.running():
        none, some, all_ = (parsed_within(thread, percent, 0.5) for percent in (0, 30, 100))
    assert none == 0
    assert 0.05 * all_ < some < 0.6 * all_  # 0.3 on a quiet machine


@pytest.mark.alone
def test_work_in_python_is_slowed_down_by_the_thread():
    """A call that needs the interpreter's lock throughout takes longer beside one that holds it."""

    def work() -> None:
        until = time.thread_time() + 0.004
        while time.thread_time() < until:
            pass

    interval = sys.getswitchinterval()
    rows = busy_rows("net", {"python": work}, at_least_s=0.0, tell=lambda line: None)
    ratio = {row["figure"]: row["value"] for row in rows}
    assert ratio["actuation/net/busy/python_beside_100_percent_over_alone"] > 1.3
    assert sys.getswitchinterval() == pytest.approx(interval)
