"""The compiled scheduler against the Python one: the same outcome for every query, to the bit."""

from __future__ import annotations

import pytest

from serve.bench.policies.twin_cases import NAMES, NUM_CASES, differing_cases
from slackfit.compiled.code_cache import missing
from slackfit.profile import LatencyProfile

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "numba is here")


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_ends_every_query_as_in_python(name: str, resnet: LatencyProfile):
    assert differing_cases(name, resnet, range(40)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_policy_ends_every_query_as_in_python_500_times(name: str, resnet: LatencyProfile):
    assert differing_cases(name, resnet, range(40, 40 + NUM_CASES)) == []
