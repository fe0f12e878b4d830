"""`TokenSampler`: chooses the tokens of one text by its `SamplingParams`.

A choice depends on the text and its seed alone, never on what else is in an iteration: draws are
`Sampling`'s, counters are the text's own, and a text that is computed again after a pre-emption
keeps the tokens that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch

from subnetact.decoding.sampling import Sampling, chances
from subnetact.decoding.sampling_params import SamplingParams


class TokenScore(NamedTuple):
    """The log-probability of a chosen token, and the likeliest tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenSampler:
    """One text's choices; `scores` has one entry for each token, where they are asked for."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], end_tokens: Collection[int]
    ) -> None:
        """Begin behind `prompt`; `end_tokens` are those that do not come before `min_tokens`."""
        self.scores: list[TokenScore] = []
        self._params = params
        self._draw = Sampling(params.temperature, params.seed)
        self._counts: Counter[int] = Counter()
        self._num_tokens = 0
        self._seen = set(prompt) if params.repetition_penalty != 1.0 else set[int]()
        self._end_tokens = sorted(end_tokens)

    def __call__(self, row: Any, position: int) -> int:
        """Return the token at `position`, by the logits (V,) behind the one before."""
        logits = torch.as_tensor(row)
        shaped = self._shaped(logits) if self._params.shapes_logits else logits
        token = self._draw.choose(self._kept(shaped), position)
        if self._params.logprobs is not None:
            self.scores.append(score(logits, token, self._params.logprobs))
        self._note(token)
        return token

    def _shaped(self, logits: torch.Tensor) -> torch.Tensor:
        params, shaped = self._params, logits.clone()
        for token, bias in params.logit_bias.items():
            shaped[token] += bias
        if self._seen:
            seen = torch.tensor(sorted(self._seen))
            old = shaped[seen]
            factor = params.repetition_penalty
            shaped[seen] = torch.where(old > 0, old / factor, old * factor)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            tokens = torch.tensor(list(self._counts))
            times = torch.tensor(list(self._counts.values()), dtype=shaped.dtype)
            shaped[tokens] -= params.presence_penalty + params.frequency_penalty * times
        if self._num_tokens < params.min_tokens and self._end_tokens:
            shaped[self._end_tokens] = -torch.inf
        return shaped

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits with those that are not drawn from at minus infinity."""
        params = self._params
        if params.temperature == 0:
            return logits
        if params.top_k and params.top_k < len(logits):
            least = torch.topk(logits, params.top_k).values[-1]
            logits = torch.where(logits < least, -torch.inf, logits)
        if params.min_p > 0 or params.top_p < 1:
            shares = chances(logits, params.temperature)
            if params.min_p > 0:
                unlikely = shares < params.min_p * shares.max()
                logits = torch.where(unlikely, -torch.inf, logits)
                shares = chances(logits, params.temperature)
            if params.top_p < 1:
                ordered, tokens = shares.sort(descending=True, stable=True)
                before = ordered.cumsum(-1) - ordered
                logits = logits.clone()
                logits[tokens[before >= params.top_p]] = -torch.inf  # the first one is kept
        return logits

    def _note(self, token: int) -> None:
        self._num_tokens += 1
        self._counts[token] += 1
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token)


def score(logits: torch.Tensor, token: int, count: int) -> TokenScore:
    """Return the log-probability of `token` under logits (V,), and the `count` likeliest."""
    logprobs = torch.log_softmax(logits.double(), -1)
    top = torch.topk(logprobs, min(count, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenScore(float(logprobs[token]), tuple(pairs))
