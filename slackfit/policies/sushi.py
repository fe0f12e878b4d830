"""SUSHI's scheduler (MLSys 2023): one query at a time, strict in accuracy or in latency.

  `latency`   the most accurate subnet whose latency is at most the head's slack;
  `accuracy`  the fastest subnet that is at least as accurate as the head asks (its floor).

SUSHI serves an accelerator without batching, so the batch size is 1; a larger one is a parameter
and ours. What happens when no subnet qualifies is not published: the fastest subnet (`latency`),
the most accurate one (`accuracy`). SUSHI's latencies depend on the resident subgraph; a profile
without residency has one column. O(subnets) per decision.
"""

from __future__ import annotations

from typing import Literal, get_args

from slackfit.policies.grid import Grid
from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision

Strict = Literal["latency", "accuracy"]


class Sushi:
    """One query at a time, strict in accuracy or in latency. Keeps the hopeless by default."""

    name = "sushi"

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        strict: Strict = "latency",
        batch_size: int = 1,
        quantile: str = "p50",
        drop_hopeless: bool = False,
    ) -> None:
        """Prepare for `profile`. Raises ValueError for a bad parameter."""
        if strict not in get_args(Strict):
            raise ValueError(f"strict is {strict!r}, allowed {', '.join(get_args(Strict))}")
        if not 1 <= batch_size <= profile.max_batch_size:
            raise ValueError(f"batch_size is {batch_size}, allowed 1 to {profile.max_batch_size}")
        self.drop_hopeless = drop_hopeless
        self._strict = strict
        self._batch_size = batch_size
        self._quantile = quantile
        self._grid = Grid(profile, quantile)

    @property
    def steps(self) -> SlackSteps:
        """Where the decisions change."""
        if self._strict == "accuracy":
            return SlackSteps((), most_waiting=self._batch_size, uses_floor=True)
        sizes = range(1, self._batch_size + 1)
        limits_s = {row[b] for _, row in self._grid.most_accurate_first for b in sizes}
        return SlackSteps(tuple(limits_s), closed=True, most_waiting=self._batch_size)

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose the subnet for the most urgent queries."""
        if view.profile is not self._grid.profile:
            self._grid = Grid(view.profile, self._quantile)
        head = view.queue.head()
        size = min(self._batch_size, len(view.queue), view.profile.max_batch_size)
        rows = self._grid.most_accurate_first
        if self._strict == "latency":
            slack_s = head.deadline_s - now_s
            fitting = (subnet_id for subnet_id, row in rows if row[size] <= slack_s)
            return Decision(next(fitting, self._grid.late.subnet_id), size)
        accuracy = self._grid.accuracy
        legal = [(row[size], s) for s, row in rows if accuracy[s] >= head.min_accuracy]
        return Decision(min(legal)[1] if legal else rows[0][0], size)
