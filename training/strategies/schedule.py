"""Learning rate and the epsilon ramp of DepS (ECCV 2024), both in closed form.

DepS trains the full model alone until the delay, then lets subnets in with an effective learning
rate that climbs linearly from about zero to the full model's. The published code needs a table
per data set; with a closed-form learning rate the ramp is

    beta(e) = 0                                        before the ramp
    beta(e) = r(e) * lr(end + 1 epoch) / lr(e)         during it, r = (step in ramp + 1) / length
    beta(e) = 1                                        after it

for any number of epochs, any budget of steps, any learning-rate schedule. In a short run, where one
epoch is more than a tenth of what is left, that tenth takes its place: the rate of the last step,
zero, would leave the subnets out (docs/decisions/040-ramp-of-short-runs.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSchedule:
    """From `lr` to `min_lr` over the run by a cosine or a line, after a linear warm-up."""

    lr: float
    total_steps: int
    min_lr: float = 0.0
    warmup_steps: int = 0
    decay: Literal["cosine", "linear"] = "cosine"

    def at(self, step: float) -> float:
        """Learning rate at a step (fractions are allowed; the end's value stands after it)."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        share = cosine if self.decay == "cosine" else 1.0 - progress
        return self.min_lr + share * (self.lr - self.min_lr)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonRamp:
    """Weight of the subnets' gradients: 0 before `start_step`, 1 from `end_step` on."""

    schedule: RateSchedule
    start_step: int
    end_step: int
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """beta at a step."""
        if step < self.start_step:
            return 0.0
        if step >= self.end_step:
            return 1.0
        r = (step - self.start_step + 1) / (self.end_step - self.start_step)
        # The target is the rate one epoch after the ramp: the value that the published tables hold.
        left = max(0, self.schedule.total_steps - self.end_step)
        target = self.schedule.at(self.end_step + min(self.steps_per_epoch, 0.1 * left))
        return r * target / self.schedule.at(step)
