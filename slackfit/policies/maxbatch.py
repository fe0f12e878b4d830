"""MaxBatch (SuperServe, NSDI'25, section A.5): the batch first, then accuracy.

The largest profiled batch that some subnet serves within the head's slack, then the most accurate
subnet that serves it in time; a head that nothing serves in time gets the largest batch on the
fastest subnet. O(subnets x batch sizes) at worst.
"""

from __future__ import annotations

from slackfit.policies.grid import Grid
from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class MaxBatch:
    """The batch first, then accuracy. Keeps hopeless queries by default, as in the paper."""

    name = "maxbatch"

    def __init__(
        self, profile: LatencyProfile, *, quantile: str = "p50", drop_hopeless: bool = False
    ) -> None:
        """Prepare for `profile`. Raises ProfileError when it lacks the quantile."""
        self.drop_hopeless = drop_hopeless
        self._quantile = quantile
        self._grid = Grid(profile, quantile)

    @property
    def steps(self) -> SlackSteps:
        """Where the decisions change."""
        return SlackSteps(self._grid.latencies_s)

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose the batch size, then the subnet."""
        if view.profile is not self._grid.profile:
            self._grid = Grid(view.profile, self._quantile)
        slack_s = view.queue.head().deadline_s - now_s
        for size in self._grid.largest_first:
            for subnet_id, row in self._grid.most_accurate_first:
                if row[size] < slack_s:
                    return Decision(subnet_id, size)
        return self._grid.late
