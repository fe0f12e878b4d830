"""The capacity part: rates come from the simulator, at the accuracy asked for."""

import pytest

from serve.bench.actuation.int8_capacity import POLICIES, RateSweep, capacity_rows
from slackfit.profile import LatencyProfile, SubnetProfile
from traces.generators.arrivals import poisson


def profile(int8_share: float, lost: float = 0.003) -> LatencyProfile:
    """Four subnets of 4 to 32 ms in fp32; int8 takes a share of that and loses some accuracy."""
    entries = [
        (name, accuracy - loss, base_s * share)
        for name, accuracy, base_s in zip(
            "abcd", (0.70, 0.74, 0.77, 0.79), (0.004, 0.008, 0.016, 0.032), strict=True
        )
        for name, loss, share in ((name, 0.0, 1.0), (f"{name}-i8", lost, int8_share))
    ]
    return LatencyProfile(
        name="p",
        device="d",
        dtype="float32",
        batch_sizes=(1, 16),
        subnets=tuple(
            SubnetProfile(
                subnet_id=i, accuracy=a, macs=1, latency_s={"p50": (one_s, 16 * 0.8 * one_s)}
            )
            for i, a, one_s in entries
        ),
    )


def ratios(of: LatencyProfile) -> dict[str, float]:
    rows = capacity_rows("net", of, queries=1000, tell=lambda line: None)
    return {row["figure"].removeprefix("actuation/net/capacity/"): row["value"] for row in rows}


def test_an_int8_axis_three_times_as_fast_is_worth_more_than_twice_the_traffic():
    found = ratios(profile(1 / 3))
    assert len(found) == 2 * 3
    for policy in POLICIES:
        assert found[f"{policy}/int8_on_over_off"] > 2.0
        assert found[f"{policy}/accuracy_gained_at_capacity_of_off"] > 0.0
        assert 0.98 < found[f"{policy}/attainment_at_capacity_of_off"] <= 1.0


def test_an_int8_axis_that_is_no_faster_is_worth_nothing():
    found = ratios(profile(1.0))
    for policy in POLICIES:  # within two steps of the search
        assert found[f"{policy}/int8_on_over_off"] == pytest.approx(1.0, abs=0.11)


def test_a_floor_that_no_rate_has_is_named():
    sweep = RateSweep(poisson(100.0, 0.2), profile(1.0), "drainfit", slo_s=0.1)
    with pytest.raises(ValueError, match="at an accuracy of 0.9000"):
        sweep.capacity(0.9)
