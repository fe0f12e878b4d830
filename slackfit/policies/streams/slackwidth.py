"""SlackWidth (ours): the width of each iteration follows the slack, together with its room.

Sarathi fixes the tokens of an iteration, Niyama lets them follow the slack of the most urgent
decode; on one width either can only trade the time to the first output against the time between
outputs. A smaller width for a while gives both back. For each width, from the best down:

    room   the prompt tokens that fit before the most urgent decode is due
    pace   at that room, when would each waiting prompt have its first output

and the first width at which all decodes and all prompts are in time is taken; if there is none, the
one at which prompts get on fastest, of several as fast the best. It goes down at once and up only
after `up_after` iterations in which it could have. Beyond that,

- a stream is admitted only while an iteration of decodes alone, on the fastest width, leaves a part
  of the period to prompts: more streams would make all of them late;
- a prompt stands back (is relegated) when even the fastest width, alone, gives its stream no
  fluidity of 0.9 any more: what is lost does not drag others down;
- prompts never wait for more than `max_skipped` iterations in a row, however short the slack is.

`guards=false` leaves these three out. On one width it is then Sarathi (`room=fixed`, `order=fcfs`)
and Niyama (`room=ladder`, `order=hybrid`).
"""

from __future__ import annotations

from math import inf
from typing import Literal, NamedTuple, get_args

from slackfit.policies.streams.fixed_width import room_s
from slackfit.policies.streams.niyama import Niyama
from slackfit.policies.streams.orders import (
    Order,
    by_due,
    by_due_and_work,
    check_order,
    relative_slack,
)
from slackfit.policies.streams.sarathi import Sarathi
from slackfit.streams.iteration_cost import IterationCost, IterationCosts
from slackfit.streams.iteration_fill import IterationFill, prompt_alone_s
from slackfit.streams.stream_policy import PromptState, StreamDecision, StreamPolicy, StreamView
from slackfit.streams.stream_query import FLUENT

Room = Literal["slack", "fixed", "ladder"]
_NEARLY = 0.98  # of the fastest pace: as fast, for what costs are known


class _Remembered(NamedTuple):
    width: int  # index of the width in force
    could_rise: int  # iterations in a row in which a better one would have done
    rise_to: int  # the best that would have done in all of them
    skipped: int  # iterations in a row without a prompt token


class _WidthPlan(NamedTuple):
    decision: StreamDecision
    in_time: bool  # decodes and prompts alike
    keeps_decodes: bool
    tokens_per_s: float  # of prompts


class SlackWidth:
    """The best width at which decodes and prompts are in time, and its room for prompts."""

    name = "slackwidth"

    def __init__(
        self,
        costs: IterationCosts,
        *,
        widths: str | None = None,
        order: Order = "edf",
        room: Room = "slack",
        budget: int = 256,
        granule: int = 8,
        safety: float = 1.1,
        up_after: int = 8,
        decode_share: float = 0.8,
        max_skipped: int = 8,
        long_tokens: int = 1024,
        long_share: float = 0.5,
        per_token_s: float = 0.008,
        guards: bool = True,
    ) -> None:
        """May run `widths` (ids joined by a blank; None: all), at most `budget` prompt tokens each.

        `safety` multiplies predictions, `decode_share` is the part of a period that decodes may
        fill. Raises ValueError for an order, room or number that can't be, ProfileError for an
        unknown width.
        """
        check_order(order)
        if room not in get_args(Room):
            raise ValueError(f"room is {room!r}, allowed {', '.join(get_args(Room))}")
        numbers = {"budget": budget, "granule": granule, "safety": safety, "up_after": up_after}
        for name, value in {**numbers, "max_skipped": max_skipped}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        for name, value in (("decode_share", decode_share), ("long_share", long_share)):
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name} is {value}, allowed above 0 and up to 1")
        ids = costs.subnet_ids if widths is None else costs.select(widths.split()).subnet_ids
        if len(ids) == 1:
            self.name = f"fixed:{ids[0]}"
        self._ids = ids
        self._costs: IterationCosts = costs
        self._rungs: list[IterationCost] = [costs.rung(subnet_id) for subnet_id in ids]
        self._rules: dict[str, StreamPolicy] = {}
        self._order = order
        self._room: Room = room
        self._budget = budget
        self.granule = granule if room == "slack" else 1
        self._safety = safety
        self._up_after = up_after
        self._decode_share = decode_share
        self._max_skipped = max_skipped
        self._long = (long_tokens, long_share) if order == "lars" else (None, 1.0)
        self._per_token_s = per_token_s
        self._guards = guards
        self.ranks_age = order == "lars"

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """By the chosen order, `lars` unless said."""
        if self._order == "fcfs":
            return 0.0
        if self._order == "edf":
            return by_due(prompt)
        if self._order == "hybrid":
            return by_due_and_work(prompt, self._per_token_s)
        return relative_slack(self._rungs[-1], prompt, now_s)

    def relegates(self, prompt: PromptState, view: StreamView, now_s: float) -> bool:
        """Whether even the fastest width, alone, leaves its stream no fluidity of `FLUENT`."""
        if self._room == "ladder":
            return self._rule(self._rungs_of(view)[-1]).relegates(prompt, view, now_s)
        if not self._guards:
            return False
        query = prompt.query
        # m periods missed by the first of N outputs leave an index of 1 - m / (m + N - 1)
        may_miss = int((query.max_tokens - 1) * (1.0 - FLUENT) / FLUENT + 1e-9)
        slack_s = prompt.due_s + may_miss * query.period_s - now_s
        if slack_s <= 0.0:
            return True
        cost = self._fastest(view)
        return prompt_alone_s(cost, prompt.done, prompt.total, self._budget) > slack_s

    def decide(self, view: StreamView, now_s: float) -> StreamDecision:
        """Choose the best width at which all are in time, else the one with the most progress."""
        rungs = self._rungs_of(view)
        least = self._least(rungs, view.min_quality)
        memo = (
            view.memo
            if isinstance(view.memo, _Remembered)
            else _Remembered(len(rungs) - 1, 0, 0, 0)
        )
        prompts = list(view.prompts())
        plans: dict[int, _WidthPlan] = {}
        wanted = self._wanted(rungs, least, plans, view, prompts, now_s)
        width, rising = self._steady(wanted, max(memo.width, least), memo)
        if width not in plans:
            plans[width] = self._plan(rungs[width], view, prompts, now_s)
        decision = plans[width].decision
        skipped = memo.skipped + 1 if prompts and not decision.budget else 0
        if self._guards and skipped > self._max_skipped:
            decision = decision._replace(budget=self.granule, target_s=inf)
            skipped = 0
        return decision._replace(
            max_running=self._places(rungs, view, prompts) if self._guards else None,
            long_tokens=self._long[0],
            long_share=self._long[1],
            memo=_Remembered(width, *rising, skipped),
        )

    # --- widths ----------------------------------------------------------------------------------

    def _wanted(
        self,
        rungs: list[IterationCost],
        least: int,
        plans: dict[int, _WidthPlan],
        view: StreamView,
        prompts: list[PromptState],
        now_s: float,
    ) -> int:
        """Return the width that would be best now; the plans made on the way are kept."""
        for width in range(len(rungs) - 1, least - 1, -1):
            plans[width] = self._plan(rungs[width], view, prompts, now_s)
            if plans[width].in_time:
                return width
        # Of those that keep the decodes, if any does, the one at which prompts get on fastest; the
        # one whose decodes alone are fastest when none does. What a better width does nearly as
        # fast it does better: a smaller one that is no faster would give quality away for nothing.
        kept = [width for width, plan in plans.items() if plan.keeps_decodes]
        if kept:
            fastest = max(plans[width].tokens_per_s for width in kept)
            return max(w for w in kept if plans[w].tokens_per_s >= _NEARLY * fastest)
        alone_s = {w: rungs[w].seconds(view.decodes) for w in range(least, len(rungs))}
        shortest_s = min(alone_s.values())
        return max(w for w, seconds in alone_s.items() if _NEARLY * seconds <= shortest_s)

    def _steady(self, wanted: int, current: int, memo: _Remembered) -> tuple[int, tuple[int, int]]:
        """Go down at once, up only after `up_after` iterations that could have."""
        if wanted <= current:
            return wanted, (0, 0)
        rise_to = min(wanted, memo.rise_to) if memo.could_rise else wanted
        if memo.could_rise + 1 >= self._up_after:
            return rise_to, (0, 0)
        return current, (memo.could_rise + 1, rise_to)

    def _rungs_of(self, view: StreamView) -> list[IterationCost]:
        if view.costs is not self._costs:  # corrected, or measured again
            self._costs = view.costs
            self._rungs = [view.costs.rung(subnet_id) for subnet_id in self._ids]
            self._rules = {}
        return self._rungs

    def _fastest(self, view: StreamView) -> IterationCost:
        rungs = self._rungs_of(view)
        return rungs[self._least(rungs, view.min_quality)]

    @staticmethod
    def _least(rungs: list[IterationCost], floor: float) -> int:
        """The index of the smallest width that is as good as asked, the last if none is."""
        for width, rung in enumerate(rungs):
            if rung.quality >= floor:
                return width
        return len(rungs) - 1

    # --- one width -------------------------------------------------------------------------------

    def _plan(
        self,
        cost: IterationCost,
        view: StreamView,
        prompts: list[PromptState],
        now_s: float,
    ) -> _WidthPlan:
        """Return what an iteration on one width would be, and whether all would be in time."""
        fill = IterationFill(cost, view.decodes)
        base_s = fill.seconds
        slack_s = view.slack_s / self._safety
        keeps = base_s <= slack_s
        decision = self._with_room(cost, fill, view, prompts, now_s)
        if not prompts:
            return _WidthPlan(decision, keeps, keeps, 0.0)
        head = prompts[0]
        waiting = sum([prompt.total - prompt.done for prompt in prompts])
        chunk = fill.largest_chunk(
            head.done, waiting, decision.budget, decision.target_s, self.granule
        )
        if not keeps or not chunk:
            budget = 0 if self._room == "slack" else decision.budget
            return _WidthPlan(decision._replace(budget=budget), False, keeps, 0.0)
        taken_s = fill.seconds_with(head.done, chunk, True)
        pace_s = taken_s / chunk  # per prompt token
        in_time, before = True, 0
        for prompt in prompts:
            before += prompt.total - prompt.done
            finish_s = now_s + self._safety * max(taken_s, before * pace_s)
            if finish_s > prompt.due_s:
                in_time = False
                break
        return _WidthPlan(decision, in_time, True, 1.0 / pace_s)

    def _with_room(
        self,
        cost: IterationCost,
        fill: IterationFill,
        view: StreamView,
        prompts: list[PromptState],
        now_s: float,
    ) -> StreamDecision:
        """Return a decision for this width with the room that the rule leaves."""
        if self._room == "slack":
            head = prompts[0] if prompts else None
            target_s = room_s(fill, view.slack_s, head, self._budget, self._safety, now_s)
            return StreamDecision(cost.subnet_id, self._budget, target_s)
        return self._rule(cost).decide(view, now_s)

    def _rule(self, cost: IterationCost) -> StreamPolicy:
        """Return the policy of one width whose rule the room follows."""
        width = cost.subnet_id
        if width not in self._rules:
            self._rules[width] = (
                Sarathi(self._costs, budget=self._budget, subnet_id=width)
                if self._room == "fixed"
                else Niyama(self._costs, subnet_id=width, per_token_s=self._per_token_s)
            )
        return self._rules[width]

    def _places(
        self, rungs: list[IterationCost], view: StreamView, prompts: list[PromptState]
    ) -> int:
        """Return how many streams may run: decodes alone must leave a part of the period."""
        period_s = min([view.period_s, *(prompt.query.period_s for prompt in prompts[:1])])
        cost = rungs[self._least(rungs, view.min_quality)]
        limit_s = self._decode_share * period_s / self._safety
        decodes = view.decodes
        mean = decodes.decode_positions // decodes.decodes if decodes.decodes else 0
        places = view.num_running
        for prompt in prompts:
            if prompt.is_running:
                continue
            count = places + 1
            positions = count * max(mean, cost.reads(prompt.total))
            work = decodes._replace(
                tokens=count, rows=count, decodes=count, decode_positions=positions
            )
            if cost.seconds(work) > limit_s:
                break
            places = count
        return max(places, 1)
