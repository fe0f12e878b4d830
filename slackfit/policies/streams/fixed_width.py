"""`fcfs`, `edf`, `lars`: one width, room by the slack; only the order of prompts differs.

An iteration may take as long as the most urgent decode has time, or the first prompt, if that
iteration finishes it and can in time; up to `budget` prompt tokens. With streams of one output and
one token, `edf` is `fixed` of batches.
"""

from __future__ import annotations

from math import inf

from slackfit.policies.streams.orders import by_due, relative_slack
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.iteration_fill import IterationFill
from slackfit.streams.stream_policy import PromptState, StreamDecision, StreamView


class Fcfs:
    """First come, first served; a budget of all tokens there can be leaves prompts whole."""

    name = "fcfs"
    ranks_age = False

    def __init__(
        self,
        costs: IterationCosts,
        *,
        subnet_id: str | None = None,
        budget: int = 256,
        safety: float = 1.0,
        granule: int = 1,
    ) -> None:
        """On the largest width unless `subnet_id` names another.

        Raises ValueError for a budget or granule below 1 or a safety below 1.
        """
        for name, value in (("budget", budget), ("granule", granule), ("safety", safety)):
            if value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        self._cost = costs.rungs[-1] if subnet_id is None else costs.rung(subnet_id)
        self._budget = budget
        self._safety = safety
        self.granule = granule

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """By arrival, which breaks ties."""
        return 0.0

    def relegates(self, prompt: PromptState, view: StreamView, now_s: float) -> bool:
        """Nobody stands back."""
        return False

    def decide(self, view: StreamView, now_s: float) -> StreamDecision:
        """Leave to prompts the time that nobody is late by; a granule at the least."""
        fill = IterationFill(self._cost, view.decodes)
        head = next(view.prompts(), None)
        target_s = room_s(fill, view.slack_s, head, self._budget, self._safety, now_s)
        least_s = inf
        if head is not None:
            least = min(self.granule, head.remaining)
            least_s = fill.seconds_with(head.done, least, least == head.remaining)
        return StreamDecision(self._cost.subnet_id, self._budget, max(target_s, least_s))


class Edf(Fcfs):
    """Whose next output is due first."""

    name = "edf"

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """By due time."""
        return by_due(prompt)


class Lars(Fcfs):
    """Length-aware relative slack; one long prompt at a time, with a share at the most."""

    name = "lars"
    ranks_age = True

    def __init__(
        self,
        costs: IterationCosts,
        *,
        subnet_id: str | None = None,
        budget: int = 256,
        safety: float = 1.0,
        granule: int = 1,
        long_tokens: int = 1024,
        long_share: float = 0.5,
    ) -> None:
        """A prompt is long with more than `long_tokens` in all; see `Fcfs` for the others.

        Raises ValueError for a share outside 0 to 1.
        """
        super().__init__(costs, subnet_id=subnet_id, budget=budget, safety=safety, granule=granule)
        if not 0.0 < long_share <= 1.0:
            raise ValueError(f"long_share is {long_share}, allowed above 0 and up to 1")
        self._long_tokens = long_tokens
        self._long_share = long_share

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """By slack over work."""
        return relative_slack(self._cost, prompt, now_s)

    def decide(self, view: StreamView, now_s: float) -> StreamDecision:
        """As `Fcfs`, with the long prompt's share."""
        decision = super().decide(view, now_s)
        return decision._replace(long_tokens=self._long_tokens, long_share=self._long_share)


def room_s(
    fill: IterationFill,
    slack_s: float,
    head: PromptState | None,
    budget: int,
    safety: float,
    now_s: float,
) -> float:
    """Return how long an iteration may take for the decodes, and the prompt that it finishes.

    A first prompt that fits into the iteration whole is heeded if it can be in time.
    """
    target_s = slack_s / safety
    if head is not None and head.remaining <= budget:
        its_s = (head.due_s - now_s) / safety
        if fill.seconds_with(head.done, head.remaining, True) <= its_s:
            target_s = min(target_s, its_s)
    return target_s
