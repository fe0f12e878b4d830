"""One fixed subnet: what a system without a supernet serves (Clipper+ in SuperServe, NSDI'25).

The largest profiled batch whose latency is below the head's slack; the largest of all when none
is (the head is late anyway). O(log batch sizes).
"""

from __future__ import annotations

from bisect import bisect_left

from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class Fixed:
    """Always the same subnet; only the batch size follows the slack."""

    def __init__(
        self,
        profile: LatencyProfile,
        subnet_id: str,
        *,
        quantile: str = "p50",
        drop_hopeless: bool = False,
    ) -> None:
        """Serve `subnet_id`. Raises ProfileError when the profile lacks it."""
        self.subnet_id = profile.subnet(subnet_id).subnet_id
        self.name = f"fixed:{subnet_id}"
        self.drop_hopeless = drop_hopeless
        self._quantile = quantile
        self._build(profile)

    @property
    def steps(self) -> SlackSteps:
        """Where the decisions change."""
        return SlackSteps(tuple(self._limits))

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose the largest batch that the head's slack affords."""
        if view.profile is not self._profile:
            self._build(view.profile)
        slack_s = view.queue.head().deadline_s - now_s
        return self._decisions[bisect_left(self._limits, slack_s)]

    def _build(self, profile: LatencyProfile) -> None:
        profile.subnet(self.subnet_id)
        self._profile = profile
        row = profile.table(self._quantile)[self.subnet_id]
        # A larger batch that is no slower than a smaller one makes the smaller one useless.
        sizes: list[int] = []
        for size in profile.batch_sizes:
            while sizes and row[sizes[-1]] >= row[size]:
                sizes.pop()
            sizes.append(size)
        self._limits = [row[size] for size in sizes]
        late = Decision(self.subnet_id, profile.max_batch_size)
        self._decisions = [late] + [Decision(self.subnet_id, size) for size in sizes]
