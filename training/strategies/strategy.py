"""What a strategy says: the passes of a step, what happens before it, its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from supernet.arch import Arch

Target = Literal["labels", "full_model", "teacher", "labels_and_teacher"]
Event = Literal["crop_kernels", "sort_channels", "freeze_teacher", "reset_optimizer", "find_front"]


class SubnetTask(NamedTuple):
    """One forward and backward pass of a step; `weight` scales its loss.

    `full_model` is the soft output of the step's first task, `teacher` that of the frozen teacher,
    `labels_and_teacher` labels plus the frozen teacher's. `hidden` weighs the distance
    to the frozen teacher's hidden states inside that loss. `part` (i, n) is the i-th of n equal
    parts of the batch, which is all that this pass sees. `precision` is that of the weights: fp32,
    or the name of a quantiser (supernet/low_bit/quantisers.py).
    """

    arch: Arch
    weight: float
    target: Target
    hidden: float = 0.0
    part: tuple[int, int] = (0, 1)
    precision: str = "fp32"

    def images(self, batch_size: int) -> slice:
        """Where this pass's part of a batch is; at least one image of it."""
        index, count = self.part[0] % batch_size, min(self.part[1], batch_size)
        return slice(index * batch_size // count, (index + 1) * batch_size // count)


class Strategy(Protocol):
    """What the trainer asks before each step.

    Pure functions of the step, but for what `observe` collected; `state` is that, as numbers.
    """

    @property
    def watches_loss(self) -> bool:
        """Whether `observe` wants the full model's loss."""
        ...

    def observe(self, step: int, full_loss: float) -> None:
        """Take the full model's loss of a step, the same on every worker."""
        ...

    def state(self) -> list[float]:
        """What a resumed run has to `restore`."""
        ...

    def restore(self, state: Sequence[float]) -> None:
        """Take back a saved state."""
        ...

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        ...

    def events(self, step: int) -> tuple[Event, ...]:
        """What happens once, before a step."""
        ...

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The passes of a step."""
        ...

    @property
    def candidates(self) -> tuple[Arch, ...]:
        """The archs whose losses the event `find_front` is about."""
        ...

    def find_front(self, losses: Sequence[float]) -> None:
        """Take the candidates' losses, the same on every worker."""
        ...


class StepwiseStrategy:
    """The part of a strategy that depends on the step alone."""

    watches_loss = False
    candidates: tuple[Arch, ...] = ()

    def observe(self, step: int, full_loss: float) -> None:
        """Nothing depends on it."""

    def find_front(self, losses: Sequence[float]) -> None:
        """There are no candidates."""

    def state(self) -> list[float]:
        """None."""
        return []

    def restore(self, state: Sequence[float]) -> None:
        """Nothing to take back."""
