"""In which order prompts are taken: ranks, of which the lowest is first.

`fcfs` by arrival; `edf` by when the next output is due; `lars`, length-aware relative slack (Medha,
arXiv 2409.17264 section 4): slack over the whole work, so that a long prompt gets its turn while it
still has time and short ones are not held up by it.
"""

from __future__ import annotations

from typing import Literal, get_args

from slackfit.streams.iteration_cost import IterationCost
from slackfit.streams.iteration_fill import prompt_alone_s
from slackfit.streams.stream_policy import PromptState

Order = Literal["fcfs", "edf", "lars", "hybrid"]
_CHUNK = 128  # tokens: what prompts are taken to be computed in where their work is estimated


def check_order(order: str) -> None:
    """Raise ValueError for an order that there is not."""
    if order not in get_args(Order):
        raise ValueError(f"order is {order!r}, allowed {', '.join(get_args(Order))}")


def by_due(prompt: PromptState) -> float:
    """Rank of `edf`."""
    return prompt.due_s


def by_due_and_work(prompt: PromptState, per_token_s: float) -> float:
    """Rank of `hybrid`, Niyama's: due time plus so many seconds per token left."""
    return prompt.due_s + per_token_s * (prompt.total - prompt.done)


def relative_slack(cost: IterationCost, prompt: PromptState, now_s: float) -> float:
    """Rank of `lars`: the slack left after the work left, over all of the prompt's work."""
    whole_s = prompt_alone_s(cost, 0, prompt.total, _CHUNK)
    left_s = prompt_alone_s(cost, prompt.done, prompt.total, _CHUNK)
    return (prompt.due_s - now_s - left_s) / whole_s if whole_s > 0.0 else prompt.due_s - now_s
