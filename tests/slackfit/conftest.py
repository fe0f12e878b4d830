"""Published profiles for the tests of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.profile import LatencyProfile

PROFILES = Path(__file__).parents[2] / "profiles"


@pytest.fixture(scope="session")
def resnet() -> LatencyProfile:
    return LatencyProfile.load(PROFILES / "superserve_resnet_2080ti.json")


@pytest.fixture(scope="session")
def dynabert() -> LatencyProfile:
    return LatencyProfile.load(PROFILES / "superserve_dynabert_2080ti.json")
