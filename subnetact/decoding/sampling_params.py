"""`SamplingParams`: how the tokens of one text are to be drawn; pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Temperature 0 takes the most likely token; above, one is drawn with `seed`.

    What is drawn from, in this order: logits plus `logit_bias` by token; less the penalties (a
    token that the output has: `presence_penalty`, and `frequency_penalty` for each time; one that
    prompt or output has: divided, or below zero multiplied, by `repetition_penalty`); the `top_k`
    likeliest (0: all); those at least `min_p` times as likely as the likeliest; the likeliest that
    make up `top_p` of what is left. No end token comes before `min_tokens` outputs. `logprobs`: of
    how many alternatives log-probabilities are told, beside those of the chosen ones (None: of
    nothing); they are of the network's own distribution.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether nothing but the network's most likely token is asked for."""
        return self.temperature == 0 and not self.shapes_logits and self.logprobs is None

    @property
    def shapes_logits(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        has_penalty = (
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )
        return bool(has_penalty or self.logit_bias or self.min_tokens)
