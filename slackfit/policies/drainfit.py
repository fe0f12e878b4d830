"""DrainFit: the pace at which the whole queue must drain, not the slack of its head (this project).

Serving a query more accurately takes longer, with diminishing returns, so an even pace is best:
the problem is speed scaling, where Optimal Available (Yao, Demers, Shenker, FOCS 1995) runs at the
lowest speed that meets all deadlines if nothing more arrives. DrainFit does that for batches, on
all workers, and counts on what will arrive:

1. Pace. A demand is (time h from now, queries that must have left by then): of the queue itself
   at a few h up to one SLO, and queue plus expected arrivals at a few h beyond (those that will be
   due by then). The workers supply sum of (h - time until free - one full batch, which a deadline
   may cut off). The pace, worker seconds per query, is the least supply / demand. The horizons
   reach so far that the drain rate does not fall below the arrival rate for long.
2. Reserve. The queue gets what a burst leaves over: the expected arrivals plus `reserve` standard
   deviations are served by the subnet with the highest throughput, so the smallest subnet alone
   can still save every deadline. (A - burst x its seconds per query) / queue bounds the pace.
3. The most accurate subnet whose full batch keeps the pace. What rounding down leaves is carried
   over as credit, so the mean pace is kept with few subnets too. (Not under a reserve that binds.)
4. All that waits, up to a full batch, if the head's slack affords it on that subnet. Else the
   subnet, with the batch cut as far as the pace allows, that is most accurate and affordable.
   Whom a batch leaves waiting must be left the time for the fastest subnet (`Rest`).
5. A head that no subnet serves in time in a batch as large as the pace demands gets the largest
   that it affords; it asks the scheduler to give up those not worth one
   (`slackfit.scheduling.triage`).

Floors and pins of the head bound the choice; those of others are kept by the scheduler. Cost per
decision O(workers + demands x log n), about 10 us. The constants were chosen on the paper's ResNet
profile and traffic, for traffic that goes on; for bursts that end with nothing behind them
`expect=0.25, lead=0.25, reserve=1` is better. docs/log.md has what was tried. More slack does not
always mean more accuracy (a later deadline can move the whole plan): it does not claim to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import inf
from typing import NamedTuple, cast

from slackfit.policies.apart import Apart, ApartGroup
from slackfit.policies.forecast import Arrivals, Forecast, begin_forecast
from slackfit.policies.others import Others
from slackfit.policies.pace import DueBy, Supply, pace_alone, pace_shared
from slackfit.policies.rest import Rest
from slackfit.policies.twins import Twins
from slackfit.policy import View
from slackfit.profile import LatencyProfile
from slackfit.query import PLAIN, Decision, Query

BEYOND_SLOS = (1.5, 2.0, 3.0, 5.0, 8.0)  # horizons of the forecast, in SLOs
LOOK_AT = 256  # queries among which one that is not served apart is looked for
QUEUE_DEMANDS = 6  # moments up to one SLO at which the queue's own demand is looked at
PACE_SIGMAS = 0.5  # standard deviations of arrivals that the pace counts on
WINDOWS_PER_SLO = 2
WINDOW_RATIO = 2.0  # how far the forecast's window may be from that before it is made anew
_LONGEST_SLO = 100  # slowest batches; deadlines further away (none at all, say) are not planned for


class _Memo(NamedTuple):
    forecast: Forecast
    slo_s: float
    arrivals: tuple[Arrivals, ...]
    credit_s: float  # worker time that rounding the pace down has left


class _Need(NamedTuple):
    """What the queue and the forecast ask of this decision."""

    pace_s: float  # worker seconds per query, step 1
    reserved_s: float  # the same under the reserve, step 2
    slack_s: float  # of the head
    size: int  # queries that wait, at most a full batch
    floor: int  # index of the least accurate subnet that the head accepts
    rest: Rest


class DrainTables(NamedTuple):
    """The Pareto subnets ascending in accuracy and latency; latencies by batch size, then place."""

    subnet_ids: tuple[str, ...]
    accuracies: list[float]
    latency_s: list[list[float]]
    per_query_s: list[list[float]]
    full_s: list[float]  # per query of a full batch
    steps_s: list[float]  # what a full batch takes more on the next one
    rows: Mapping[str, list[float]]  # of every subnet, by batch size
    lead_s: float
    longest_slo_s: float


class DrainFit:
    """Serves at the pace that drains the queue. Hopeless queries are dropped by default."""

    name = "drainfit"
    triage = True

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        reserve: float = 3.0,
        expect: float = 1.0,
        lead: float = 1.0,
        quantile: str = "p50",
        drop_hopeless: bool = True,
    ) -> None:
        """Prepare for `profile`.

        `reserve` is in standard deviations of the arrivals, `expect` the share of the forecast
        that is counted on (1: traffic goes on as it comes; 0: nothing more comes), `lead` how many
        full batches per worker a deadline may cut off. Raises ValueError for one that is below 0
        or not finite, ProfileError when the profile lacks the quantile.
        """
        for name, value in (("reserve", reserve), ("expect", expect), ("lead", lead)):
            if not 0 <= value < inf:
                raise ValueError(f"{name} is {value}, allowed a finite number of 0 or more")
        self.expect = expect
        self._lead = lead
        self.drop_hopeless = drop_hopeless
        self.reserve = reserve
        self._quantile = quantile
        self._twins: Twins[DrainFit] = Twins()
        self.lay_out(profile)

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose subnet and batch size for the pace that the queue and the forecast demand."""
        if view.profile is not self._profile:
            return self._twins.of(self, view.profile).decide(view, now_s)
        memo = self._remember(view, now_s)
        if view.wishes or view.others.num_models:
            return self._decide_shared(view, now_s, memo)
        return self._choose(self._need(view, now_s, memo), memo)

    def tables(self, profile: LatencyProfile) -> DrainTables:
        """Return what it works with on `profile`."""
        if profile is not self._profile:
            return self._twins.of(self, profile).tables(profile)
        return DrainTables(
            self._ids,
            self._accuracies,
            self._latency_s,
            self._per_query_s,
            self._full_s,
            self._steps_s,
            self._rows,
            self._lead_s,
            self._longest_slo_s,
        )

    def _choose(self, need: _Need, memo: _Memo) -> Decision:
        """Return what serves the need: steps 3 to 5."""
        _, reserved_s, slack_s, size, floor, rest = need
        # 3. the most accurate subnet that keeps the pace, and the reserve where that binds
        wanted, credit_s = self._subnet_at(need.pace_s, size, memo.credit_s)
        if reserved_s < need.pace_s:
            wanted = max(min(wanted, bisect_right(self._full_s, reserved_s) - 1), 0)
        wanted = max(wanted, floor)
        batch_s = self._latency_s[size][wanted]
        if batch_s > slack_s or not rest.can_wait(size, batch_s):
            return self._cut_short(need, wanted, memo)  # 4. and 5.
        # 4. all that waits
        return Decision(self._ids[wanted], size, _Memo(memo[0], memo[1], memo[2], credit_s))

    def _remember(self, view: View, now_s: float) -> _Memo:
        """Return the memo, brought up to date when a window is over or another SLO is tightest."""
        memo = cast("_Memo | None", view.memo)
        is_same = memo is not None and memo.slo_s == min(view.tightest_slo_s, self._longest_slo_s)
        if memo is not None and is_same and now_s < memo.forecast.until_s:
            return memo
        slo_s = min(view.tightest_slo_s, self._longest_slo_s)
        window_s = slo_s / WINDOWS_PER_SLO
        if memo is None:
            forecast = begin_forecast(view, now_s, window_s)
        else:
            forecast = memo.forecast
            if not window_s / WINDOW_RATIO < forecast.window_s < window_s * WINDOW_RATIO:
                forecast = forecast.resized(window_s, now_s)
            if now_s >= forecast.until_s:
                forecast = forecast.update(view, now_s)
        arrivals: list[Arrivals] = []
        for slos in BEYOND_SLOS:
            mean, sigma = forecast.arrivals(slo_s * (slos - 1), self.expect)
            counted = mean + PACE_SIGMAS * self.expect * sigma
            arrivals.append(Arrivals(slo_s * slos, counted, mean, sigma))
        return _Memo(forecast, slo_s, tuple(arrivals), memo.credit_s if memo else 0.0)

    def _need(self, view: View, now_s: float, memo: _Memo) -> _Need:
        """Return steps 1 and 2, and what bounds the choice."""
        head, num_waiting = view.queue.head(), len(view.queue)
        slack_s = head.deadline_s - now_s
        supply = Supply(view.workers, now_s, self._lead_s)
        demands = self._demands(view, now_s, memo, slack_s)
        pace_s, reserved_s = pace_alone(demands, supply, num_waiting, self._full_s[0], self.reserve)
        size = min(num_waiting, self._max_batch)
        rest = self._rest(view, now_s, supply)
        return _Need(pace_s, reserved_s, slack_s, size, self._floor(head), rest)

    def _rest(self, view: View, now_s: float, supply: Supply) -> Rest:
        return Rest(view.queue, now_s, supply.next_free_s, self._fastest_s)

    def _demands(self, view: View, now_s: float, memo: _Memo, slack_s: float) -> list[DueBy]:
        """Return the demands: beyond one SLO the queue and arrivals, up to it the queue's own."""
        num_waiting = len(view.queue)
        demands = [DueBy(a.horizon_s, num_waiting + a.counted, a) for a in memo.arrivals]
        if num_waiting > self._max_batch:
            step_s = max(memo.slo_s - slack_s, 0.0) / QUEUE_DEMANDS
            for i in range(1, QUEUE_DEMANDS + 1):
                horizon_s = slack_s + i * step_s
                demands.append(DueBy(horizon_s, view.queue.count_due(now_s + horizon_s)))
        return demands

    def _floor(self, head: Query) -> int:
        """Return the index of the least accurate subnet that a query accepts."""
        floor = bisect_left(self._accuracies, head.min_accuracy) if head.min_accuracy > 0.0 else 0
        return min(floor, len(self._ids) - 1)

    def _decide_shared(self, view: View, now_s: float, memo: _Memo) -> Decision:
        """Decide where other models share the workers, or some queries are served apart."""
        queue, others = view.queue, Others(view.others, memo.slo_s, self._full_s[0])
        supply = Supply(view.workers, now_s, others.lead * self._lead_s)
        demands = self._demands(view, now_s, memo, queue.head().deadline_s - now_s)
        groups = self._groups(view)
        apart = Apart([g for g in groups if g.view.wish.subnet_id is not None], memo.slo_s)
        while True:  # floors that the pace does not keep are served apart, which lowers the pace
            pace = pace_shared(
                demands, supply, len(queue), self._full_s[0], self.reserve, others, apart
            )
            kept = [g for g in groups if g in apart.groups or g.query_s > pace.pace_s]
            if len(kept) == len(apart.groups):
                break
            apart = Apart(kept, memo.slo_s)
        longest_s = max(others.longest_batch_s, self._latency_s[self._max_batch][0])
        rest = self._rest(view, now_s, supply)
        urgent = apart.most_urgent(now_s, self._max_batch)
        first = queue.earliest(LOOK_AT)
        joint = next((q for q in first if not apart.holds(q, groups)), None)
        decision, laxity_s = None, inf
        if joint is not None:
            slack_s = joint.deadline_s - now_s
            size = min(max(len(queue) - apart.num_waiting, 1), self._max_batch)
            need = _Need(*pace, min(slack_s, longest_s), size, self._floor(joint), rest)
            decision = self._choose(need, memo)
            laxity_s = slack_s - self._rows[decision.subnet_id][decision.batch_size]
            if groups:
                decision = decision._replace(wish=PLAIN)
        if urgent is not None and (decision is None or urgent[2] < laxity_s):
            group, size, _ = urgent
            return Decision(group.subnet_id, size, memo, wish=group.view.wish)
        assert decision is not None, "something waits, in the queue or in a group"
        return decision

    def _groups(self, view: View) -> list[ApartGroup]:
        """Return the wishes that this profile can grant, each with its subnet."""
        groups: list[ApartGroup] = []
        for wished in view.wishes:
            subnet_id, floor = wished.wish
            if subnet_id is None:
                at = bisect_left(self._accuracies, floor)
                if at == len(self._ids):
                    continue
                subnet_id = self._ids[at]
            row_s = self._rows.get(subnet_id)
            if row_s is not None:
                query_s = row_s[self._max_batch] / self._max_batch
                groups.append(ApartGroup(wished, subnet_id, row_s, query_s))
        return groups

    def _subnet_at(self, pace_s: float, size: int, credit_s: float) -> tuple[int, float]:
        """Return the subnet (an index) whose full batch keeps the pace, and the new credit."""
        full_s = self._full_s
        wanted = max(bisect_right(full_s, pace_s + credit_s / size) - 1, 0)
        return wanted, self._bounded(credit_s + (pace_s - full_s[wanted]) * size, wanted)

    def _bounded(self, credit_s: float, index: int) -> float:
        """Return the credit, at most what one full batch takes more on the next subnet."""
        bound_s = self._steps_s[index]
        return max(-bound_s, min(bound_s, credit_s))

    def _cut_short(self, need: _Need, wanted: int, memo: _Memo) -> Decision:
        """Choose where the slack, or the rest's, does not afford all on `wanted`: steps 4 and 5.

        More accuracy in a smaller batch must keep the pace by itself; of equally accurate subnets
        the largest batch is taken.
        """
        pace_s, reserved_s, slack_s, size, floor, rest = need
        ceiling_s = min(pace_s, reserved_s)
        # 4. a less accurate subnet for all, or a batch cut short for a more accurate one
        best = min(wanted, bisect_right(self._latency_s[size], slack_s) - 1)
        best = max(self._waited_for(rest, size, best, -1), min(best, floor))
        best_size = size
        for smaller in range(size - 1, 0, -1):
            keeping = bisect_right(self._per_query_s[smaller], ceiling_s) - 1
            if keeping <= best:
                break
            index = min(wanted, keeping, bisect_right(self._latency_s[smaller], slack_s) - 1)
            index = self._waited_for(rest, smaller, index, best)
            if index > best:
                best, best_size = index, smaller
        if best >= floor:
            row_s = self._full_s if best_size == size else self._per_query_s[best_size]
            saved_s = (pace_s - row_s[best]) * best_size
            credit_s = self._bounded(memo.credit_s + saved_s, best)
            return Decision(self._ids[best], best_size, memo._replace(credit_s=credit_s))
        # 5. the largest batch that the head affords; who is not worth one is given up by triage
        fitting = (b for b in range(size, 0, -1) if self._latency_s[b][floor] <= slack_s)
        return Decision(self._ids[floor], next(fitting, size), memo)

    def _waited_for(self, rest: Rest, size: int, index: int, above: int) -> int:
        """Return the most accurate subnet up to `index` that leaves the rest time; else `above`."""
        row_s = self._latency_s[size]
        while index > above and not rest.can_wait(size, row_s[index]):
            index -= 1
        return index

    def prepare(self, profile: LatencyProfile) -> None:
        """Lay out now what the first decision on another profile would have to."""
        if profile is not self._profile:
            self._twins.of(self, profile)

    def lay_out(self, profile: LatencyProfile) -> None:
        """Lay out the Pareto subnets, ascending in accuracy and latency, by batch size."""
        pareto = profile.pareto(self._quantile)
        rows = pareto.table(self._quantile)
        largest = pareto.max_batch_size
        self._profile = profile
        self._rows = profile.table(self._quantile)
        self._ids = pareto.subnet_ids
        self._accuracies = [subnet.accuracy for subnet in pareto.subnets]
        self._max_batch = largest
        # A subnet that is slower here than a more accurate one counts as slow as that: sorted.
        by_size = [[rows[i][size] for i in self._ids] for size in range(largest + 1)]
        self._latency_s = [list(accumulate(row, max)) for row in by_size]
        self._per_query_s = [[t / max(b, 1) for t in row] for b, row in enumerate(self._latency_s)]
        self._full_s = self._per_query_s[largest]
        self._fastest_s = [row[0] for row in self._latency_s]
        self._steps_s = [(b - a) * largest for a, b in pairwise(self._full_s)] + [0.0]
        # Batches do not end where deadlines are: up to one per worker helps none of those due.
        self._lead_s = self._lead * self._latency_s[largest][0]
        self._longest_slo_s = _LONGEST_SLO * self._latency_s[largest][-1]
