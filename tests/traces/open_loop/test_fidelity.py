from __future__ import annotations

import numpy as np
import pytest

from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.simulation.devices import Slowdown
from traces.generators.arrivals import gamma, poisson
from traces.open_loop.answers import Answer
from traces.open_loop.fidelity import batch_slowdowns, fidelity, figures, wire_s
from traces.open_loop.live_twin import LiveServer, simulate_live
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.result import make_result
from traces.open_loop.target import ReplayReply
from traces.trace import Trace, TraceError


@pytest.fixture
def profile() -> LatencyProfile:
    return LatencyProfile(
        name="flat",
        device="nowhere",
        dtype="float32",
        batch_sizes=(1, 2),
        subnets=(
            SubnetProfile(subnet_id="s", accuracy=0.9, macs=0, latency_s={"p50": (0.010, 0.015)}),
        ),
    )


def server(profile: LatencyProfile, **changes) -> LiveServer:
    options = {
        "max_allowance": 0.1,
        "triage": True,
        "policy": "fixed:largest",
        "profile": profile,
        "wire_s": 0.002,
        "reply_allowance_s": 0.005,
        "max_queue": 1000,
        "drop_hopeless": True,
        "correct_latency": True,
    }
    return LiveServer(**{**options, **changes})


def test_a_lone_query_takes_its_profiled_time_and_the_wire(profile):
    told = simulate_live(gamma(10.0, 0.0, 1.0), server(profile), ReplayOptions(slo_s=0.1))
    assert [o.latency_s for o in told] == pytest.approx([0.012] * 10)
    assert figures(told) == pytest.approx(
        {"p50_ms": 12, "p95_ms": 12, "slo_attainment": 1.0, "mean_serving_accuracy": 0.9}
    )


def test_the_wire_can_make_a_query_late_that_the_device_finished_in_time(profile):
    slow = server(profile, wire_s=0.03)
    told = simulate_live(gamma(10.0, 0.0, 1.0), slow, ReplayOptions(slo_s=0.03))
    assert {o.status for o in told} == {"late"}
    assert told[0].deadline_s == pytest.approx(0.03 + told[0].arrival_s)


def test_the_device_is_as_slow_as_the_live_one_was_at_that_time(profile):
    slow = [Slowdown(0.0, 0, 2.0), Slowdown(0.45, 0, 1.0)]
    told = simulate_live(
        gamma(10.0, 0.0, 1.0), server(profile), ReplayOptions(slo_s=0.1), slowdowns=slow
    )
    took = [0.022 if o.arrival_s < 0.45 else 0.012 for o in told]
    assert [o.latency_s for o in told] == pytest.approx(took)


def test_the_warm_up_is_served_but_not_counted(profile):
    trace = poisson(50.0, 2.0, seed=1)
    whole = simulate_live(trace, server(profile), ReplayOptions(slo_s=0.1))
    rest = simulate_live(trace, server(profile), ReplayOptions(slo_s=0.1, warmup_s=0.5))
    kept = [o for o in whole if o.arrival_s >= 0.5]
    assert [o.latency_s for o in rest] == pytest.approx([o.latency_s for o in kept])
    assert rest[0].arrival_s == pytest.approx(kept[0].arrival_s - 0.5)


def test_errors_are_relative_for_latencies_and_differences_for_fractions(profile):
    live = simulate_live(
        gamma(10.0, 0.0, 1.0), server(profile, wire_s=0.01), ReplayOptions(slo_s=0.1)
    )
    table = fidelity(
        live, simulate_live(gamma(10.0, 0.0, 1.0), server(profile), ReplayOptions(slo_s=0.1))
    )
    assert table["p95_ms"]["error"] == pytest.approx(-0.4)
    assert table["slo_attainment"]["error"] == 0.0
    assert fidelity([], live)["p95_ms"]["error"] is None


def answer(i: int, execution_s: float, batch_id: str, wire_s: float = 0.001) -> Answer:
    reply = ReplayReply(
        status="ok", subnet_id="s", batch_size=2, batch_id=batch_id, queue_s=0.002,
        execution_s=execution_s,
    )  # fmt: skip
    return Answer(i, i * 0.1, i * 0.1, i * 0.1 + 0.002 + execution_s + wire_s, reply, None)


def test_batches_count_once_and_the_wire_is_what_is_left(profile):
    answers = [answer(0, 0.03, "a"), answer(1, 0.03, "a"), answer(2, 0.015, "b", 0.003)]
    trace = Trace(arrival_s=np.array([0.0, 0.1, 0.2]), duration_s=1.0)
    result = make_result(
        trace, answers, slo_s=np.full(3, 0.1), warmup_s=0.0, ended_s=None, max_lag_s=1.0
    )
    first, second = batch_slowdowns(result, profile, 0.004)
    assert first == pytest.approx((0.004, 0, 2.0))
    assert second == pytest.approx((0.204, 0, 1.0))
    assert wire_s(answers) == pytest.approx(0.001)
    with pytest.raises(TraceError, match="answered none"):
        wire_s([])


def test_an_unknown_policy_or_no_deadline_is_said(profile):
    trace = gamma(10.0, 0.0, 1.0)
    with pytest.raises(TraceError, match="the server's policy can't be simulated"):
        simulate_live(trace, server(profile, policy="theirs"), ReplayOptions(slo_s=0.1))
    with pytest.raises(TraceError, match="no deadlines"):
        simulate_live(trace, server(profile), ReplayOptions(slo_s=None))


def test_a_door_keeps_queries_that_come_together_one_after_the_other(profile):
    trace = Trace(arrival_s=np.array([0.0, 0.0, 0.5]), duration_s=1.0)
    slow = server(profile, door_s=0.004)
    told = simulate_live(trace, slow, ReplayOptions(slo_s=0.2))
    # The device takes the first at 4 ms for 10 ms, the second at 14 ms; each 2 ms on the wire.
    assert [o.latency_s for o in told] == pytest.approx([0.016, 0.026, 0.016])
    assert [o.arrival_s for o in told] == pytest.approx([0.0, 0.0, 0.5])
    assert [o.deadline_s for o in told] == pytest.approx([0.2, 0.2, 0.7])
    hopeless = simulate_live(trace, server(profile, door_s=0.3), ReplayOptions(slo_s=0.2))
    assert {o.status for o in hopeless} == {"rejected"}
