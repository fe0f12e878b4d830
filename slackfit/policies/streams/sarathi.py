"""Sarathi (Sarathi-Serve, OSDI'24, algorithm 3): decodes first, prompts up to a fixed budget.

One width, first come first served. The budget of tokens per iteration, decodes among them, is
chosen once so that a full iteration keeps the time allowed between two outputs; nothing of it
follows the slack.
"""

from __future__ import annotations

from math import inf

from slackfit.streams.iteration_cost import IterationCost, IterationCosts, IterationWork
from slackfit.streams.iteration_fill import IterationFill
from slackfit.streams.stream_policy import PromptState, StreamDecision, StreamView

_DECODES, _CONTEXT = 8, 512  # of the iteration that the budget is chosen for
_MOST = 2048


class Sarathi:
    """A fixed budget on one width, the largest unless `subnet_id` names another."""

    name = "sarathi"
    granule = 1
    ranks_age = False

    def __init__(
        self, costs: IterationCosts, *, budget: int | None = None, subnet_id: str | None = None
    ) -> None:
        """`budget` None: derived, once, from the period of the first stream.

        Raises ValueError for a budget below 1, ProfileError for an unknown width.
        """
        if budget is not None and budget < 1:
            raise ValueError(f"budget is {budget}, allowed 1 or more tokens")
        self._budget = budget
        self._cost = costs.rungs[-1] if subnet_id is None else costs.rung(subnet_id)

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """First come, first served."""
        return 0.0

    def relegates(self, prompt: PromptState, view: StreamView, now_s: float) -> bool:
        """Nobody stands back."""
        return False

    def decide(self, view: StreamView, now_s: float) -> StreamDecision:
        """Leave to prompts what the decodes leave of the budget."""
        budget = view.memo if isinstance(view.memo, int) else self._first_budget(view)
        room = max(budget - view.decodes.tokens, 0)
        return StreamDecision(self._cost.subnet_id, room, memo=budget)

    def _first_budget(self, view: StreamView) -> int:
        if self._budget is not None:
            return self._budget
        first = next(view.prompts(), None)
        period_s = min(view.period_s, inf if first is None else first.query.period_s)
        return budget_of(self._cost, period_s)


def budget_of(cost: IterationCost, period_s: float) -> int:
    """Return the most tokens of an iteration of 8 decodes and a chunk that takes `period_s`.

    At least one token more than the decodes.
    """
    decodes = IterationWork(_DECODES, _DECODES, _DECODES, _DECODES * _CONTEXT)
    fill = IterationFill(cost, decodes)
    return _DECODES + max(fill.largest_chunk(_CONTEXT, _MOST, _MOST - 1, period_s), 1)
