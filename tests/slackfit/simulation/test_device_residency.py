"""What devices keep resident in the simulator, and what their batches take then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from slackfit.resident_table import ResidentTable
from slackfit.simulation.device_residency import SimulatedResidency
from slackfit.simulation.devices import DeviceModel
from slackfit.simulation.simulate import simulate

BASE_S = {"s": 0.010, "l": 0.040}
ENCODING = {"s": (2.0, 2.0), "l": (8.0, 8.0)}


def table(name: str, num_bytes: int, **beside_s: float) -> ResidentTable:
    return ResidentTable(
        residency_id=name,
        num_bytes=num_bytes,
        latency_s={i: {"p50": (t,)} for i, t in beside_s.items()},
        load_s=0.003,
        encoding=ENCODING["s" if "s" in beside_s else "l"],
    )


@pytest.fixture
def profile() -> LatencyProfile:
    return LatencyProfile(
        name="made",
        device="cpu",
        dtype="float32",
        batch_sizes=(1,),
        subnets=tuple(
            SubnetProfile(
                subnet_id=i,
                accuracy=accuracy,
                macs=1,
                latency_s={"p50": (BASE_S[i],)},
                extra={"encoding": list(ENCODING[i])},
            )
            for i, accuracy in (("s", 0.7), ("l", 0.8))
        ),
        residency=(table("for s", 50, s=0.005), table("for l", 100, l=0.020)),
    )


def served(kept: SimulatedResidency, stream: str) -> list[float]:
    return [kept.latency_s(0, i, 1) for i in stream]


@pytest.mark.parametrize("policy", ["value", "sushisched", "static"])
def test_a_stream_of_one_subnet_runs_beside_its_own_subgraph(
    profile: LatencyProfile, policy: str
) -> None:
    kept = SimulatedResidency(profile, policy)  # room for the larger subgraph, not for both
    taken_s = served(kept, "l" * 50)
    assert taken_s[0] == pytest.approx(0.040 + (0.003 if policy == "static" else 0.0))
    assert taken_s[-1] == pytest.approx(0.020)
    summary = kept.summary()
    assert summary["loads"] == 1
    assert summary["loaded_bytes"] == 100
    assert summary["load_s"] == pytest.approx(0.003)
    assert summary["hit_rate"] == pytest.approx(sum(t < 0.030 for t in taken_s) / 50, abs=0.05)
    assert sum(taken_s) == pytest.approx(
        0.003 + 50 * (summary["hit_rate"] * 0.020 + (1 - summary["hit_rate"]) * 0.040)
    )


def test_when_the_mix_changes_the_policy_follows_and_the_static_set_does_not(
    profile: LatencyProfile,
) -> None:
    stream = "l" * 60 + "s" * 600
    following, static = (SimulatedResidency(profile, p) for p in ("value", "static"))
    served(following, stream)
    served(static, stream)
    assert following.summary()["loads"] == 2
    assert static.summary()["loads"] == 1
    assert following.summary()["hit_rate"] > 0.9 > static.summary()["hit_rate"]


def test_with_room_for_both_every_subnet_runs_beside_its_own(profile: LatencyProfile) -> None:
    kept = SimulatedResidency(profile, "static", budget_bytes=150)
    assert served(kept, "lsls")[1:] == pytest.approx([0.005, 0.020, 0.005])


def test_the_simulator_serves_faster_beside_what_is_resident(profile: LatencyProfile) -> None:
    arrival_s = np.arange(200) * 0.05
    kept = SimulatedResidency(profile, "value", num_workers=1)

    def latency_s(residency: SimulatedResidency | None) -> float:
        outcomes = simulate(
            arrival_s,
            profile,
            create_policy("fixed:largest", profile),
            slo_s=0.2,
            devices=DeviceModel(residency=residency),
        )
        assert len(outcomes) == 200
        return float(np.mean([o.finish_s - o.arrival_s for o in outcomes]))

    assert latency_s(None) == pytest.approx(0.040)
    assert latency_s(kept) < 0.025
    assert kept.summary()["batches"] == 200
    again = kept.fresh()
    assert again.summary()["batches"] == 0
    assert latency_s(again) == latency_s(kept.fresh()) < 0.025
    assert again.summary() == kept.summary()


def test_what_can_not_be_is_refused(profile: LatencyProfile) -> None:
    with pytest.raises(ValueError, match="'best' is unknown, allowed value, sushisched, static"):
        SimulatedResidency(profile, "best")
    with pytest.raises(ValueError, match="a cache of 49 bytes has room for no subgraph"):
        SimulatedResidency(profile, "value", budget_bytes=49)
    with pytest.raises(ProfileError, match="'made' has no residency tables"):
        SimulatedResidency(replace(profile, residency=()), "value")
    plain = replace(profile, subnets=tuple(replace(s, extra={}) for s in profile.subnets))
    with pytest.raises(ProfileError, match="has no encoding of s, l"):
        SimulatedResidency(plain, "sushisched")
