"""How much computing a run is, in multiply-accumulates, whatever machine it ran on."""

from __future__ import annotations

from functools import cache

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.subnets.cost import cost
from training.strategies.strategy import Strategy

_SAMPLED = 100  # steps; counting an arch takes milliseconds, and a run has tens of thousands
_BACKWARD = 2  # a backward pass takes twice a forward one: by inputs and by weights


def training_macs(
    strategy: Strategy, definition: SupernetDefinition, *, total_steps: int, batch_size: int
) -> float:
    """Multiply-accumulates of all passes of a run, forward and backward.

    Of evenly spaced steps' plans, so that random subnets are those of a sample. A model that
    stands still and teaches adds its forward pass; the average of the weights does too, only where
    it teaches in the full model's place, which a plan does not say: it is left out.
    """

    @cache
    def macs_of(arch: Arch) -> int:
        return cost(definition, arch).macs

    count = min(_SAMPLED, total_steps)
    sampled = [(2 * i + 1) * total_steps // (2 * count) for i in range(count)]
    total = 0.0
    for step in sampled:
        plan = strategy.plan(step)
        for task in plan:
            rows = task.images(batch_size)
            total += (1 + _BACKWARD) * macs_of(task.arch) * (rows.stop - rows.start)
        if any(task.target in ("teacher", "labels_and_teacher") for task in plan):
            total += macs_of(definition.space.largest) * batch_size
    return total / count * total_steps
