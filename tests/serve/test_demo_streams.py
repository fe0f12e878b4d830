"""The demo of streams: its minute is more than the largest width carries, not so all widths."""

from __future__ import annotations

from serve.demo_streams import POLICIES, WANTED_FLUIDITY, burst, simulated_fluidity
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts


def test_the_minute_is_carried_by_all_widths_and_not_by_the_largest() -> None:
    costs = IterationCosts.of(LatencyProfile.load("profiles/smollm2_135m_example.json"))
    trace = burst(costs, seed=0)
    ours, largest = (simulated_fluidity(costs, trace, policy) for policy in POLICIES)
    assert largest < WANTED_FLUIDITY
    assert ours > 0.9
