"""What a stream policy is shown, and the error of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_policy import PromptState


class StreamPolicyError(RuntimeError):
    """A stream policy raised, or decided something impossible; all streams are still there."""

    def __init__(self, policy: str, fault: str, num_streams: int) -> None:
        self.policy = policy
        self.num_streams = num_streams
        super().__init__(f"policy {policy!r} failed: {fault}; {num_streams} streams stay")


class ScheduleView:
    """The scheduler as a policy sees it, see `StreamView`; brought up to date before each step."""

    def __init__(self, costs: IterationCosts) -> None:
        self.costs = costs
        self.decodes = IterationWork()
        self.slack_s = inf
        self.period_s = inf
        self.min_quality = 0.0
        self.num_running = 0
        self.num_waiting = 0
        self.free_tokens = 0
        self.tokens_per_s = 0.0
        self.memo: object = None
        self.first: list[PromptState] = []

    def prompts(self) -> Iterator[PromptState]:
        """See `StreamView`."""
        return iter(self.first)
