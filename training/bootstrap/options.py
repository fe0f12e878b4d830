"""`BootstrapOptions`: what a user asks of a bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.bootstrap.start import PretrainedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapOptions:
    """What is asked for. `minutes` are of wall time, all stages together.

    `is_alone` trains the whole network by itself for the same time: what sharing its weights costs.
    `micro_batch_size` and `activation_checkpointing` are as in a training config.
    """

    source: PretrainedSource
    data: str
    minutes: float = 90.0
    batch_size: int = 64
    device: str = "cpu"
    threads: int = 0
    seed: int = 0
    validation: float = 0.1
    recipe: str = ""
    micro_batch_size: int = 0
    activation_checkpointing: bool = False
    is_alone: bool = False

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes:g}, expected a number above 0")
        if self.minutes == math.inf:
            raise ValueError("minutes is inf, expected a finite number")
        if self.batch_size < 2:
            raise ValueError(f"batch size is {self.batch_size}, allowed 2 or more")
        if self.micro_batch_size < 0:
            raise ValueError(f"micro-batch size is {self.micro_batch_size}, allowed 0 or more")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation:g}, allowed between 0 and 1")
