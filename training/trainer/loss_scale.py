"""`LossScale`: gradients of passes in fp16, held within what fp16 can say.

Half precision knows nothing below 6e-8, and most gradients of a network in training are smaller. So
losses are multiplied by a scale before they go backward, and gradients are divided by it before
they are used. A step whose gradients have overflowed is left out and the scale halved; after 2,000
others it is doubled. Source: Micikevicius et al., Mixed Precision Training (ICLR 2018), with the
constants of `torch.amp.GradScaler`, which works with torch's own optimizers only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

FIRST = 2.0**16
_GROWS_AFTER = 2_000  # steps


class LossScale:
    """The scale of one run; 1 and never checked where `is_on` is False."""

    def __init__(self, *, is_on: bool) -> None:
        """Begin with the first scale."""
        self._is_on = is_on
        self.value = FIRST if is_on else 1.0
        self._num_since = 0  # steps since it last changed
        self._num_left_out = 0

    @torch.no_grad()
    def unscale(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Divide gradients in place; return whether the step that they are of is to be made.

        The scale for the next step follows from that.
        """
        if not self._is_on:
            return True
        for gradient in gradients:
            gradient.div_(self.value)
        is_whole = bool(torch.stack([g.isfinite().all() for g in gradients]).all())
        self._num_since += 1
        if not is_whole:
            self._num_left_out += 1
            self.value, self._num_since = self.value / 2.0, 0
        elif self._num_since == _GROWS_AFTER:
            self.value, self._num_since = self.value * 2.0, 0
        return is_whole

    def figures(self) -> dict[str, float]:
        """Return the scale and how many steps were left out, for the log; nothing where it is 1."""
        if not self._is_on:
            return {}
        return {"loss_scale": self.value, "steps_left_out": float(self._num_left_out)}

    def state(self) -> list[float]:
        """Return everything that the next step depends on."""
        return [self.value, self._num_since, self._num_left_out]

    def restore(self, state: Sequence[float]) -> None:
        """Take back a saved state; none, of a run that had no scale, changes nothing."""
        if state:
            self.value = state[0]
            self._num_since, self._num_left_out = int(state[1]), int(state[2])
