"""The contract between the stream scheduler and a policy that chooses each iteration's width.

As in `policy.py` a policy is pure: what it may know is in the view, what it may remember goes
through `StreamDecision.memo`. It says in which order prompts are taken (`rank`), how wide the
iteration is and how long it may take. Decodes are not its business: all of them are in every
iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import NamedTuple, Protocol

from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from slackfit.streams.stream_query import StreamQuery


class PromptState(NamedTuple):
    """A prompt that is not computed yet, or again: `done` of `total` tokens are.

    `total` is the prompt and, after a pre-emption, the outputs so far. `due_s` is when the stream's
    next output is due. `is_running`: it holds its place, and memory for all of it.
    """

    query: StreamQuery
    done: int
    total: int
    due_s: float
    is_running: bool

    @property
    def remaining(self) -> int:
        """How many tokens are still to be computed."""
        return self.total - self.done


class StreamDecision(NamedTuple):
    """The width of an iteration, and what of prompts it may take besides the decodes.

    Prompts fill it, in the policy's order, up to `budget` tokens and as long as it is predicted to
    end within `target_s` from now. No stream is admitted beyond `max_running`. `long_tokens`: only
    one prompt with more in all is in an iteration, until it is done, and where others wait it has
    at most `long_share` of the budget and of the time. `memo` is handed back in the next view.
    """

    subnet_id: str
    budget: int
    target_s: float = inf
    max_running: int | None = None
    long_tokens: int | None = None
    long_share: float = 1.0
    memo: object = None


class StreamView(Protocol):
    """All that a policy may look at before an iteration."""

    @property
    def costs(self) -> IterationCosts: ...

    @property
    def decodes(self) -> IterationWork:
        """The work of the decodes alone."""
        ...

    @property
    def slack_s(self) -> float:
        """The time until the most urgent decode is due, inf without any."""
        ...

    @property
    def period_s(self) -> float:
        """The shortest period of the streams that run, inf without any."""
        ...

    @property
    def min_quality(self) -> float:
        """The highest floor of the streams that run and of the first prompt."""
        ...

    @property
    def num_running(self) -> int:
        """How many streams hold a place."""
        ...

    @property
    def num_waiting(self) -> int:
        """How many streams hold none yet."""
        ...

    @property
    def free_tokens(self) -> int:
        """For how many tokens there is memory that no stream holds."""
        ...

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens computed per second of late, 0 before the first."""
        ...

    @property
    def memo(self) -> object: ...

    def prompts(self) -> Iterator[PromptState]:
        """Prompts in the policy's order, those that were relegated left out."""
        ...


class StreamPolicy(Protocol):
    """Chooses the width and the room for prompts of each iteration."""

    @property
    def name(self) -> str: ...

    @property
    def granule(self) -> int:
        """What a chunk is a multiple of, unless it is a prompt's last."""
        ...

    @property
    def ranks_age(self) -> bool:
        """Whether time alone changes the order that `rank` gives."""
        ...

    def rank(self, prompt: PromptState, now_s: float) -> float:
        """Return a prompt's place in the order, the lowest first; ties by arrival."""
        ...

    def relegates(self, prompt: PromptState, view: StreamView, now_s: float) -> bool:
        """Whether a prompt is late whatever is done: it then stands back behind all others."""
        ...

    def decide(self, view: StreamView, now_s: float) -> StreamDecision:
        """Return the next iteration's width and room. There is a decode or a prompt."""
        ...
