"""Profiles and policies for the tests of this package."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from slackfit.policy import View
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Decision
from slackfit.streams.iteration_cost import IterationCosts

PROFILES = Path(__file__).parents[2] / "profiles"


@pytest.fixture(scope="session")
def resnet() -> LatencyProfile:
    return LatencyProfile.load(PROFILES / "superserve_resnet_2080ti.json")


@pytest.fixture(scope="session")
def dynabert() -> LatencyProfile:
    return LatencyProfile.load(PROFILES / "superserve_dynabert_2080ti.json")


@pytest.fixture(scope="session")
def smollm2() -> LatencyProfile:
    return LatencyProfile.load(PROFILES / "smollm2_135m_example.json")


@pytest.fixture(scope="session")
def decoder_costs(smollm2: LatencyProfile) -> IterationCosts:
    return IterationCosts.of(smollm2)


class Planned:
    """A policy that gives its answers in turn: a decision, None, or an error to raise."""

    name = "planned"

    def __init__(self, *answers: object, drop_hopeless: bool = False) -> None:
        self.answers = list(answers)
        self.drop_hopeless = drop_hopeless
        self.seen: list[dict[str, object]] = []

    def decide(self, view: View, now_s: float) -> Decision | None:
        self.seen.append({"now_s": now_s, "memo": view.memo, "worker": view.worker})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast("Decision | None", answer)


@pytest.fixture
def planned() -> type[Planned]:
    return Planned


@pytest.fixture(scope="session")
def trio() -> LatencyProfile:
    """Three subnets, batches of 1, 2 and 4; a batch of b takes b times 10, 20 or 40 ms."""
    return LatencyProfile(
        name="trio",
        device="none",
        dtype="none",
        batch_sizes=(1, 2, 4),
        subnets=tuple(
            SubnetProfile(
                subnet_id=name,
                accuracy=accuracy,
                macs=1,
                latency_s={"p50": tuple(b * step_s for b in (1, 2, 4))},
            )
            for name, accuracy, step_s in (
                ("small", 0.7, 0.01),
                ("medium", 0.8, 0.02),
                ("large", 0.9, 0.04),
            )
        ),
    )
