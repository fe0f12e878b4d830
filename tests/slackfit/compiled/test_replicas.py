"""Replicas in turn, compiled: the outcomes of the Python simulation of replicas, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from slackfit.compiled.code_cache import missing
from slackfit.compiled.replicas import simulate_round_robin, why_not_routed
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Failure
from slackfit.simulation.replicas import simulate_replicas
from slackfit.simulation.routing import ROUND_ROBIN, parse_routing


@pytest.mark.skipif(bool(missing()), reason=missing() or "numba is here")
@pytest.mark.parametrize("policy", ["slackfit", "drainfit"])
@pytest.mark.parametrize("count", [2, 3000])
def test_each_query_ends_as_in_python(policy: str, count: int, resnet: LatencyProfile):
    rng = np.random.default_rng(5)
    arrival_s = np.cumsum(rng.gamma(0.25, 4 / 25_000, count))
    options = {
        "slo_s": rng.choice([0.02, 0.036, 0.1], count), "query_class": rng.integers(0, 2, count),
        "num_replicas": 3, "num_workers": 2, "drop_hopeless": True,
    }  # fmt: skip
    want = simulate_replicas(
        arrival_s, resnet, create_policy(policy, resnet), ROUND_ROBIN, **options
    )
    got = simulate_round_robin(arrival_s, resnet, create_policy(policy, resnet), **options)
    assert list(got) == want
    if count > 100:
        assert {o.status for o in want} > {"on_time"}
        assert {o.worker_id for o in want} >= set(range(6))


def test_what_is_not_in_turn_or_not_as_profiled_is_named(resnet: LatencyProfile):
    policy = create_policy("slackfit", resnet)
    other = parse_routing("power-of-two")
    why = why_not_routed(other, policy, resnet, AS_PROFILED)
    assert why == "routing power-of-two has no compiled form"
    slower = DeviceModel(overhead_s=0.001)
    assert "not as profiled" in why_not_routed(ROUND_ROBIN, policy, resnet, slower)
    failing = DeviceModel(events=[Failure(1.0, 0)])
    assert "not as profiled" in why_not_routed(ROUND_ROBIN, policy, resnet, failing)
    if not missing():
        for plain in (AS_PROFILED, DeviceModel(events=[])):
            assert why_not_routed(ROUND_ROBIN, policy, resnet, plain) == ""
