"""When shrinking begins: at a given step, or once the full model's loss has become flat.

Too early costs time, since every later step trains four networks, and disturbs the full model; too
late leaves too few steps to the subnets. DepS found 25 to 75 % of a run to work and 50 % best, for
its schedules. `PlateauDelay` looks at the run itself: it begins when one window (a twentieth of
the run) has lowered the mean loss by less than `THRESHOLD` of what the run has gained since its
first window; a quarter and three quarters of the run are its guard rails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from training.strategies.strategy import StepwiseStrategy

THRESHOLD = 0.02
_WINDOWS = 20
_EARLIEST, _LATEST = 0.25, 0.75


class Delay(Protocol):
    """Says when shrinking begins; None while that is open."""

    @property
    def start_step(self) -> int | None: ...

    def observe(self, step: int, full_loss: float) -> None: ...

    def state(self) -> list[float]: ...

    def restore(self, state: Sequence[float]) -> None: ...


class FixedDelay(StepwiseStrategy):
    """Begins at a step given beforehand."""

    def __init__(self, start_step: int):
        self.start_step: int | None = start_step


class PlateauDelay:
    """Collects the full model's loss; `start_step` is None until it has been decided."""

    def __init__(self, total_steps: int):
        self._window = max(1, total_steps // _WINDOWS)
        self._earliest = round(_EARLIEST * total_steps)
        self._latest = round(_LATEST * total_steps)
        self._losses: list[float] = []  # means of the windows that are complete
        self._sum, self._count = 0.0, 0
        self.start_step: int | None = None

    def observe(self, step: int, full_loss: float) -> None:
        """Take the full model's loss of a step (from 0), the same on every worker."""
        if self.start_step is not None:
            return
        self._sum += full_loss
        self._count += 1
        if self._count == self._window:
            self._losses.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
            if step + 1 >= self._earliest and self._is_flat():
                self.start_step = step + 1
        if step + 1 >= self._latest:
            self.start_step = step + 1

    def state(self) -> list[float]:
        """What a resumed run needs, as plain numbers."""
        start = -1.0 if self.start_step is None else float(self.start_step)
        return [start, self._sum, float(self._count), *self._losses]

    def restore(self, state: Sequence[float]) -> None:
        """Take back what `state` returned."""
        start, self._sum, count, *self._losses = state
        self.start_step, self._count = None if start < 0 else int(start), int(count)

    def _is_flat(self) -> bool:
        if len(self._losses) < 2:
            return False
        first, before, last = self._losses[0], self._losses[-2], self._losses[-1]
        return before - last < THRESHOLD * (first - last)
