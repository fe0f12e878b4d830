"""The simulated twin of several live servers: how queries are spread, each door, each wire."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slackfit.profile import LatencyProfile
from traces.generators.arrivals import gamma, poisson
from traces.open_loop.fidelity import figures
from traces.open_loop.live_twin import LiveServer, simulate_live, simulate_live_fleet
from traces.open_loop.replay_options import ReplayOptions
from traces.trace import Trace, TraceError

OPTIONS = ReplayOptions(slo_s=0.36)


@pytest.fixture(scope="module")
def server() -> LiveServer:
    path = Path("profiles/superserve_resnet_2080ti.json")
    return LiveServer(
        policy="drainfit", profile=LatencyProfile.load(path).scaled(10.0), wire_s=0.002,
        reply_allowance_s=0.005, max_allowance=0.1, max_queue=1000, drop_hopeless=None,
        triage=True, correct_latency=True, door_s=0.0003,
    )  # fmt: skip


def test_one_server_needs_no_spreading(server: LiveServer):
    trace = gamma(80.0, 4.0, 10.0)
    alone = simulate_live(trace, server, OPTIONS)
    assert simulate_live_fleet(trace, [server], OPTIONS, num_senders=1) == alone


def test_two_servers_serve_twice_the_traffic_as_well_as_one_serves_its_own(server: LiveServer):
    rate_qps = 0.7 * server.profile.fastest().capacity_qps
    one = figures(simulate_live(poisson(rate_qps, 20.0), server, OPTIONS))
    trace = poisson(2 * rate_qps, 20.0)
    outcomes = simulate_live_fleet(trace, [server, server], OPTIONS, num_senders=1)
    two = figures(outcomes)
    assert len(outcomes) == len(trace)
    assert [o.query_id for o in outcomes] == list(range(len(trace)))
    for name in ("slo_attainment", "mean_serving_accuracy"):
        assert two[name] == pytest.approx(one[name], abs=0.01)
    overwhelmed = figures(simulate_live(trace, server, OPTIONS))
    assert overwhelmed["slo_attainment"] < two["slo_attainment"] - 0.1  # type: ignore[operator]
    shares = Counter(o.worker_id for o in outcomes)
    assert abs(shares[0] - shares[1]) < 0.1 * len(trace)


def test_a_slower_server_gets_less_and_each_query_the_wire_of_its_own(server: LiveServer):
    slower = replace(server, profile=server.profile.scaled(3.0), wire_s=0.05)
    rate_qps = 0.5 * server.profile.fastest().capacity_qps
    trace = poisson(rate_qps, 10.0)
    outcomes = simulate_live_fleet(trace, [server, slower], OPTIONS, num_senders=2)
    shares = Counter(o.worker_id for o in outcomes)
    assert shares[1] < 0.75 * shares[0]
    fastest_s = min(row[1] for row in server.profile.table().values())
    least_s = {
        at: min(o.latency_s for o in outcomes if o.worker_id == at and o.status == "on_time")
        for at in (0, 1)
    }
    assert least_s[0] >= fastest_s + 0.002
    assert least_s[1] >= 3 * fastest_s + 0.05


def test_a_door_lets_its_own_requests_through_one_by_one(server: LiveServer):
    trace = Trace(arrival_s=np.zeros(8), duration_s=1.0)
    slow_door = replace(server, door_s=0.05, wire_s=0.0)
    options = ReplayOptions(slo_s=2.0)
    outcomes = simulate_live_fleet(trace, [slow_door, slow_door], options, num_senders=1)
    starts_s = sorted(o.start_s or 0.0 for o in outcomes)
    assert starts_s[0] == pytest.approx(0.05)
    assert starts_s[-1] >= 4 * 0.05 - 1e-9
    assert starts_s[-1] < 8 * 0.05


def test_the_warm_up_is_left_out_and_deadlines_are_asked_for(server: LiveServer):
    trace = poisson(50.0, 4.0)
    rest = simulate_live_fleet(
        trace, [server, server], replace(OPTIONS, warmup_s=1.0), num_senders=1
    )
    assert len(rest) == int((trace.arrival_s >= 1.0).sum())
    assert rest[0].arrival_s >= 0.0
    with pytest.raises(TraceError, match="the trace carries no deadlines"):
        simulate_live_fleet(trace, [server, server], ReplayOptions(slo_s=None), num_senders=1)
