"""MaxAcc (SuperServe, NSDI'25, section A.5): accuracy first, then the batch.

The most accurate subnet whose latency at batch size 1 is below the head's slack, then the largest
profiled batch that is below it too; a head that nothing serves in time gets the largest batch on
the fastest subnet. O(subnets + batch sizes); near saturation it starves the queue.
"""

from __future__ import annotations

from slackfit.policies.grid import Grid
from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class MaxAcc:
    """Accuracy first, then the batch. Keeps hopeless queries by default, as in the paper."""

    name = "maxacc"

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
        """Choose the subnet, then the batch size."""
        if view.profile is not self._grid.profile:
            self._grid = Grid(view.profile, self._quantile)
        slack_s = view.queue.head().deadline_s - now_s
        for subnet_id, row in self._grid.most_accurate_first:
            if row[1] < slack_s:
                sizes = (b for b in self._grid.largest_first if row[b] < slack_s)
                return Decision(subnet_id, next(sizes, 1))
        return self._grid.late
