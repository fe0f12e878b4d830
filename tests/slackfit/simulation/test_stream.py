"""Streaming gives the same counts as keeping every outcome, in flat memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.policies import create_policy
from slackfit.simulation.devices import DeviceModel, Failure
from slackfit.simulation.simulate import simulate
from slackfit.simulation.stream import simulate_stream


def arrivals(count: int, rate_qps: float = 6000.0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(5).gamma(0.25, 4 / rate_qps, count))


@pytest.mark.parametrize("name", ["slackfit", "drainfit", "modelzoo"])
@pytest.mark.parametrize("size", [1, 777, 100_000])
def test_pieces_of_any_size_give_the_report_of_the_whole(resnet, name, size):
    arrival_s = arrivals(6000, 14_000.0)
    events = [Failure(0.1, 3)]
    policy = create_policy(name, resnet)
    options = {"slo_s": 0.036, "num_workers": 8, "devices": DeviceModel(events=events)}
    words = {"policy": name, "slo_s": 0.036, "duration_s": 1.0, "seed": 0, "profile": "p"}
    whole = summarize(simulate(arrival_s, resnet, policy, **options), **words)
    pieces = (arrival_s[i : i + size] for i in range(0, len(arrival_s), size))
    report = simulate_stream(pieces, resnet, policy, **options).report(**words)
    for key in ("outcomes", "num_queries", "reasons", "subnets", "slo_attainment", "goodput_qps"):
        assert report[key] == whole[key], key
    assert report["mean_serving_accuracy"] == pytest.approx(whole["mean_serving_accuracy"])
    for key in ("p50", "p90", "p99", "max"):
        assert report["latency_ms"][key] == pytest.approx(whole["latency_ms"][key], rel=0.006)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trace(resnet):
    def peak(pieces: int) -> int:
        gaps = np.random.default_rng(0)

        def stream():
            now_s = 0.0
            for _ in range(pieces):
                piece = now_s + np.cumsum(gaps.exponential(1 / 6000, 5000))
                now_s = float(piece[-1])
                yield piece

        tracemalloc.start()
        policy = create_policy("slackfit", resnet)
        simulate_stream(stream(), resnet, policy, slo_s=0.036, num_workers=8)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    # The bounded history of arrivals (131,072 times at most) is still filling up in the shorter.
    assert peak(32) < peak(8) + 8 * 131_072 + 4_000_000


def test_pieces_out_of_order_are_refused(resnet):
    pieces = [np.array([0.0, 1.0]), np.array([0.5])]
    policy = create_policy("slackfit", resnet)
    with pytest.raises(ValueError, match=r"^a piece begins at 0.5 s, before the last one's 1.0 s$"):
        simulate_stream(pieces, resnet, policy, slo_s=1.0)


def test_nothing_streamed_is_an_empty_report(resnet):
    tally = simulate_stream([], resnet, create_policy("slackfit", resnet), slo_s=1.0)
    report = tally.report(policy="p", slo_s=1.0, duration_s=1.0, seed=0, profile="p")
    assert (report["num_queries"], report["slo_attainment"]) == (0, 0.0)
    assert report["latency_ms"] == dict.fromkeys(("p50", "p90", "p99", "max"))
