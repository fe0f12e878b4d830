"""INFaaS without a latency search (Romero et al., ATC 2021): the cheapest model that satisfies.

SuperServe (NSDI'25, section 6.1) compares with this reading of INFaaS, confirmed with its authors:
without an accuracy threshold it always serves the least accurate model. Here the threshold is the
head's accuracy floor; cheapest is the lowest latency at batch size 1. The batch is the largest
that the head's slack affords, as for a fixed subnet. O(log subnets + batch sizes) per decision.
"""

from __future__ import annotations

from slackfit.eligibility import Eligibility
from slackfit.policies.grid import Grid
from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class Infaas:
    """The cheapest subnet above the head's floor. Keeps hopeless queries by default."""

    name = "infaas"

    def __init__(
        self, profile: LatencyProfile, *, quantile: str = "p50", drop_hopeless: bool = False
    ) -> None:
        """Prepare for `profile`. Raises ProfileError when it lacks the quantile."""
        self.drop_hopeless = drop_hopeless
        self._quantile = quantile
        self._build(profile)

    @property
    def steps(self) -> SlackSteps:
        """Where the decisions change."""
        return SlackSteps(self._grid.latencies_s, uses_floor=True)

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose the cheapest legal subnet and the largest batch that fits."""
        if view.profile is not self._profile:
            self._build(view.profile)
        head = view.queue.head()
        slack_s = head.deadline_s - now_s
        subnet_id = self._eligible.fastest(head)
        assert subnet_id is not None, "a head that no subnet may serve was removed as hopeless"
        row = self._eligible.table[subnet_id]
        fitting = (b for b in self._grid.largest_first if row[b] < slack_s)
        return Decision(subnet_id, next(fitting, self._grid.late.batch_size))

    def _build(self, profile: LatencyProfile) -> None:
        self._profile = profile
        self._eligible = Eligibility(profile, self._quantile)
        self._grid = Grid(profile, self._quantile)
