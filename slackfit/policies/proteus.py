"""A periodic re-planner in the manner of Proteus (Ahmad et al., ASPLOS 2024), with loading times.

Every `period_s` each worker is assigned one subnet so that together they carry the estimated
arrival rate with `headroom`, at the highest mean accuracy; in between nothing follows the load.
Proteus solves an integer program every 30 s; here at most two subnets are mixed, and all mixes of
two are tried: for identical workers that is the optimum up to the rounding of workers when the
front is concave. A subnet's batch is the largest that takes at most half of the SLO, also when the
head is late (a batch that shrinks with the head's slack never recovers from the backlog of a
switch); with `drop_hopeless` those that this batch cannot serve in time are given up. The default
period is 1 s, in favour of the re-planner: the synthetic traces last seconds. A worker that
is given another subnet pays for loading it (`switch_cost_s`, as in the model zoo). Until the first
period is over all workers run the fastest subnet. Planning is O(subnets^2), deciding O(batches).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from slackfit.policies.grid import Grid
from slackfit.policies.modelzoo import ModelZoo
from slackfit.policy import View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class _Assignment(NamedTuple):
    until_s: float
    subnet_ids: tuple[str, ...]  # per worker


class Proteus:
    """Assigns subnets to workers every period. Keeps hopeless queries by default."""

    name = "proteus"

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        period_s: float = 1.0,
        headroom: float = 1.05,
        loading_s: float = 0.040,
        quantile: str = "p50",
        drop_hopeless: bool = False,
    ) -> None:
        """Prepare for `profile`. Raises ValueError for a period or headroom that is not positive.

        `headroom` multiplies the estimated rate; `loading_s` as for `ModelZoo`.
        """
        if not period_s > 0 or not headroom > 0:
            raise ValueError(
                f"period_s is {period_s} and headroom {headroom}, allowed more than 0 for both"
            )
        self.drop_hopeless = drop_hopeless
        self._period_s = period_s
        self._headroom = headroom
        self._loading_s = loading_s
        self._quantile = quantile
        self._build(profile)

    @property
    def switch_cost_s(self) -> Mapping[str, float]:
        """Seconds that loading each subnet takes."""
        return self._costs_s

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Serve the worker's planned subnet; plan anew when the period is over."""
        if view.profile is not self._grid.profile:
            self._build(view.profile)
        head = view.queue.head()
        plan = cast("_Assignment | None", view.memo)
        if plan is None:
            first = (self._grid.late.subnet_id,) * len(view.workers)
            plan = _Assignment(now_s + self._period_s, first)
        elif now_s >= plan.until_s:
            rate_qps = view.arrivals_within(self._period_s) / self._period_s
            slo_s = head.deadline_s - head.arrival_s
            subnet_ids = self._planned(rate_qps * self._headroom, slo_s, len(view.workers))
            plan = _Assignment(now_s + self._period_s, subnet_ids)
        subnet_id = plan.subnet_ids[view.worker.worker_id]
        if subnet_id not in self._rows:  # planned for another profile
            subnet_id = self._grid.late.subnet_id
        size = self._batch_size(subnet_id, head.deadline_s - head.arrival_s)
        end_s = now_s + self._rows[subnet_id][min(size, len(view.queue))]
        return Decision(subnet_id, size, plan, end_s)

    def _batch_size(self, subnet_id: str, slo_s: float) -> int:
        """Return the largest batch that takes at most half of the SLO, 1 if none does."""
        row = self._rows[subnet_id]
        return next((b for b in self._grid.largest_first if 2 * row[b] <= slo_s), 1)

    def _planned(self, rate_qps: float, slo_s: float, num_workers: int) -> tuple[str, ...]:
        """Return the subnet of each worker for a rate, the more accurate ones first."""
        capacity: dict[str, float] = {}
        for subnet_id, row in self._grid.most_accurate_first:
            size = self._batch_size(subnet_id, slo_s)
            if 2 * row[size] <= slo_s:
                capacity[subnet_id] = size / row[size]
        fastest = (self._grid.late.subnet_id,) * num_workers
        best, chosen = -1.0, fastest
        accuracy = self._grid.accuracy
        for high, high_qps in capacity.items():
            for low, low_qps in capacity.items():
                if low_qps < high_qps:
                    continue
                # The fewest workers on the faster subnet that carry the rate together.
                missing_qps = rate_qps - num_workers * high_qps
                num_low = 0 if missing_qps <= 0 else _ceil(missing_qps, low_qps - high_qps)
                if num_low > num_workers:
                    continue
                served_qps = min(rate_qps, (num_workers - num_low) * high_qps)
                share = served_qps / rate_qps if rate_qps > 0 else 1.0
                value = share * accuracy[high] + (1 - share) * accuracy[low]
                if value > best:
                    best = value
                    chosen = (high,) * (num_workers - num_low) + (low,) * num_low
        return chosen

    def _build(self, profile: LatencyProfile) -> None:
        self._grid = Grid(profile, self._quantile)
        self._rows = profile.table(self._quantile)
        zoo = ModelZoo(profile, loading_s=self._loading_s, quantile=self._quantile)
        self._costs_s = zoo.switch_cost_s


def _ceil(need: float, step: float) -> int:
    """Return the least whole number of steps that reaches `need`; huge when steps are nothing."""
    return 1 << 30 if step <= 0 else -int(-need // step)
