"""A model zoo: SlackFit's choice among separate models, each loaded when a worker switches to it.

What SuperServe (NSDI'25, section 2 and Figure 5b) argues against: without a shared supernet a
switch costs the loading of weights, 40 ms for the largest extracted ResNet subnet (read off the
axis of Figure 5b; loading times per subnet are not printed, so they are taken in proportion to
MACs). A worker switches when the head's slack affords loading and running a batch that is at
least as large as the one its loaded model would serve in time, or when that serves none. Whoever
drives the scheduler adds `switch_cost_s`. The first model of a worker is there already.
O(log buckets + batch sizes) per decision.
"""

from __future__ import annotations

from collections.abc import Mapping

from slackfit.policies.slackfit import SlackFit
from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class ModelZoo:
    """SlackFit over separate models. Keeps hopeless queries by default."""

    name = "modelzoo"

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        loading_s: float = 0.040,
        num_buckets: int = 8,
        quantile: str = "p50",
        drop_hopeless: bool = False,
    ) -> None:
        """Prepare for `profile`; `loading_s` is that of its largest subnet by MACs.

        Raises ValueError for a loading time below 0 or a bad bucket count.
        """
        if not 0 <= loading_s < float("inf"):
            raise ValueError(f"loading_s is {loading_s}, allowed a finite time of 0 or more")
        self.drop_hopeless = drop_hopeless
        self._quantile = quantile
        self._loading_s = loading_s
        self._slackfit = SlackFit(profile, num_buckets=num_buckets, quantile=quantile)
        self._build(profile)

    @property
    def switch_cost_s(self) -> Mapping[str, float]:
        """Seconds that loading each subnet takes."""
        return self._costs_s

    @property
    def steps(self) -> SlackSteps:
        """Where the decisions change: batches of a loaded model, and loading before one."""
        runs_s = {(i, row[b]) for i, row in self._rows.items() for b in self._sizes}
        limits_s = {run_s for _, run_s in runs_s}
        limits_s |= {self._costs_s[i] + run_s for i, run_s in runs_s}
        limits_s |= {*self._slackfit.steps.limits_s}
        return SlackSteps(tuple(limits_s), uses_loaded=True)

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose between the loaded model and the one that SlackFit would load."""
        if view.profile is not self._profile:
            self._build(view.profile)
        wanted = self._slackfit.decide(view, now_s)
        loaded = view.worker.last_subnet_id
        assert wanted is not None, "SlackFit never waits"
        if loaded is None or loaded not in self._rows or wanted.subnet_id == loaded:
            return wanted
        slack_s = view.queue.head().deadline_s - now_s
        row = self._rows[loaded]
        stay = next((b for b in self._sizes if row[b] < slack_s), 0)
        needed_s = self._costs_s[wanted.subnet_id] + self._rows[wanted.subnet_id][wanted.batch_size]
        if not stay or (needed_s < slack_s and wanted.batch_size >= stay):
            return wanted
        return Decision(loaded, stay)

    def _build(self, profile: LatencyProfile) -> None:
        self._profile = profile
        self._rows = profile.table(self._quantile)
        self._sizes = profile.batch_sizes[::-1]
        most = max(subnet.macs for subnet in profile.subnets) or 1
        self._costs_s = {
            subnet.subnet_id: self._loading_s * (subnet.macs or most) / most
            for subnet in profile.subnets
        }
