"""Profiles with overhead and with interpolated subnets."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from slackfit.derive import densified, with_overhead
from slackfit.profile import LatencyProfile


def test_overhead_lengthens_every_batch_and_is_named(resnet: LatencyProfile):
    slower = with_overhead(resnet, 0.006)
    assert slower.latency_s("resnet-73.82", 16) == pytest.approx(0.01335)
    assert slower.latency_s("resnet-80.16", 3) == pytest.approx(
        resnet.latency_s("resnet-80.16", 3) + 0.006
    )
    assert slower.name == "superserve_resnet_2080ti+6ms"
    assert slower.source.endswith("6 ms per batch added to every latency (assumed, not measured).")
    assert with_overhead(resnet, 0.0) is resnet


def test_densified_keeps_the_measured_and_labels_the_interpolated(resnet: LatencyProfile):
    dense = densified(resnet, 66)
    made = [s for s in dense.subnets if s.extra.get("interpolated")]
    assert [s for s in dense.subnets if s not in made] == list(resnet.subnets)
    assert (len(dense.subnets), len(made)) == (64, 58)
    assert all(re.fullmatch(r"interpolated-[0-9.]+", s.subnet_id) for s in made)
    gaps = {round(b.accuracy - a.accuracy, 6) for a, b in pairwise(made)}
    assert gaps == {round((0.8016 - 0.7382) / 59, 6)}
    assert "58 subnets interpolated (not measured)" in dense.source
    assert LatencyProfile.from_json(dense.to_json()).subnet_ids == dense.subnet_ids


def test_interpolation_is_linear_in_accuracy_between_neighbours(resnet: LatencyProfile):
    dense = densified(resnet, 20)
    for subnet in dense.subnets:
        if not 0.7669 < subnet.accuracy < 0.7764:
            continue
        share = (subnet.accuracy - 0.7669) / (0.7764 - 0.7669)
        assert subnet.latency_s["p50"][4] == pytest.approx((9.38 + share * (10.6 - 9.38)) * 1e-3)
        assert subnet.macs == pytest.approx((2.05 + share * (3.6 - 2.05)) * 1e9, abs=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: with_overhead(p, -1.0),
            "overhead_s is -1.0, allowed a finite time of 0 or more",
        ),
        (
            lambda p: densified(p, 7),
            "num_subnets is 7 for 6 measured Pareto subnets; allowed 8 or more, between at least 2 "
            "measured ones",
        ),
        (
            lambda p: densified(p.select(["resnet-73.82"]), 9),
            "num_subnets is 9 for 1 measured Pareto subnets; allowed 4 or more, between at least 2 "
            "measured ones",
        ),
    ],
)
def test_what_cannot_be_derived_is_refused(resnet: LatencyProfile, make, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(resnet)
