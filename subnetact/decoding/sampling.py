"""`Sampling`: which token follows, by logits, temperature and a seed.

The draw for a position is a function of (seed, position) alone, by a counter-based generator
(Philox; Salmon et al., SC'11), so neither the company in a batch nor a repeated computation changes
a text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 takes the most likely token; above, one is drawn. Raises ValueError below."""

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}, allowed a number, 0 or more")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}, allowed 0 to {2**64 - 1}")

    def choose(self, logits: torch.Tensor, position: int) -> int:
        """Return the token that stands at `position`, by the logits (V,) behind the one before.

        Tokens that are ruled out have minus infinity. Raises ValueError where the largest logit is
        not finite, as it is with a NaN anywhere: any choice would look like a text.
        """
        if not math.isfinite(float(logits.max())):
            raise ValueError(
                "the network's output is not finite: its weights are damaged, or too large for "
                "the packing"
            )
        if self.temperature == 0:
            return int(logits.argmax())
        weights = chances(logits, self.temperature).cumsum(-1)
        # One block of the counter per position: its first number is the draw.
        source = np.random.Philox(key=self.seed, counter=position)
        draw = np.random.Generator(source).random() * float(weights[-1])
        return min(int(torch.searchsorted(weights, draw, right=True)), len(weights) - 1)


def chances(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return what logits (V,) are drawn with at a temperature above 0, (V,) in double precision.

    Less the largest before they are divided: over the smallest temperatures they would overflow.
    """
    return torch.softmax((logits.double() - logits.max()) / temperature, -1)
