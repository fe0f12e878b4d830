"""Niyama (ASPLOS'26): the token budget follows the slack, on one width.

The largest step of a ladder of budgets whose predicted time, times a safety factor, fits the slack
of the most urgent decode; the smallest when nothing fits. Prompts go by due time plus some seconds
per token left, and one that at the speed seen of late can't be in time stands back at once.

Ours in it: the ladder is the profile's measured token counts from 16 up (the paper's, 128 to 2552,
is of one GPU), its predictor the iteration cost, and memory is short below `low_free_tokens`.
"""

from __future__ import annotations

from slackfit.policies.streams.orders import by_due_and_work
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.iteration_fill import IterationFill
from slackfit.streams.stream_policy import PromptState, StreamDecision, StreamView

_SMALLEST = 16


class Niyama:
    """A budget by slack on one width, the largest unless `subnet_id` names another."""

    name = "niyama"
    granule = 1
    ranks_age = False

    def __init__(
        self,
        costs: IterationCosts,
        *,
        subnet_id: str | None = None,
        safety: float = 1.2,
        per_token_s: float = 0.008,
        low_free_tokens: int = 4096,
    ) -> None:
        """Raises ValueError for a safety below 1, ProfileError for an unknown width."""
        if safety < 1.0:
            raise ValueError(f"safety is {safety}, allowed 1 or more")
        self._cost = costs.rungs[-1] if subnet_id is None else costs.rung(subnet_id)
        self._safety = safety
        self._per_token_s = per_token_s
        self._low_free_tokens = low_free_tokens
        self.ladder = tuple(n for n in self._cost.linear.at if n >= _SMALLEST) or (_SMALLEST,)

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """By due time plus a little for each token that is left."""
        return by_due_and_work(prompt, self._per_token_s)

    def relegates(self, prompt: PromptState, view: StreamView, now_s: float) -> bool:
        """Whether it is late at the speed that prompts were computed with of late."""
        speed = view.tokens_per_s
        return speed > 0.0 and now_s + prompt.remaining / speed > prompt.due_s

    def decide(self, view: StreamView, now_s: float) -> StreamDecision:
        """Choose the largest step of the ladder that the slack affords."""
        ladder = self.ladder
        if view.free_tokens < self._low_free_tokens:
            ladder = ladder[: (len(ladder) + 1) // 2]
        head = next(view.prompts(), None)
        start = 0 if head is None else head.done
        decodes = view.decodes.tokens
        fill = IterationFill(self._cost, view.decodes)
        budget = ladder[0]
        for tokens in ladder:
            chunk = max(tokens - decodes, 0)
            taken_s = fill.seconds_with(start, chunk, False) if chunk else fill.seconds
            if self._safety * taken_s > view.slack_s:
                break
            budget = tokens
        return StreamDecision(self._cost.subnet_id, max(budget - decodes, 0))
