"""How large the inputs of layers are: root mean square of each channel over calibration batches.

The importance of a channel that weights alone misjudge is read from it (sort.py,
activation_importance.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


@torch.inference_mode()
def measure_input_scales(
    net: nn.Module, layers: Iterable[str], batches: Iterable[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Run `net` over batches; return (C,) float64 root mean squares by the name of the layer.

    `layers` names submodules that take (B, C, H, W) or (..., C); one that is never run is left out.
    Raises ValueError when there is no batch.
    """
    squares = {name: _MeanSquare() for name in layers}
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(_adding(square))
        for name, square in squares.items()
    ]
    try:
        num_batches = sum(1 for _ in map(net.eval(), batches))
    finally:
        for hook in hooks:
            hook.remove()
    if num_batches == 0:
        raise ValueError("importance by activations needs at least one batch, got none")
    return {name: square.root() for name, square in squares.items() if square.count}


class _MeanSquare:
    """The mean square of each input channel of a layer over all that it was given."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Take in (B, C, H, W), or (..., C)."""
        channels_last = x.movedim(1, -1) if x.dim() == 4 else x
        rows = channels_last.detach().flatten(0, -2).double()  # (N, C)
        self._sum = self._sum.to(rows.device) + rows.square().sum(0)
        self.count += len(rows)

    def root(self) -> torch.Tensor:
        """(C,) root mean squares."""
        return (self._sum / self.count).sqrt()


def _adding(square: _MeanSquare) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        square.add(given[0])

    return add
