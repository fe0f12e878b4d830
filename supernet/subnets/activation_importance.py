"""Channel importance by what channels carry: size of the weights that read them times their values.

The sort by weights alone (sort.py) takes a channel that is always near zero for an important one
when its readers are large, as they are in networks that were trained elsewhere. Here the L1 norm of
the reading weights is scaled by the channel's root mean square over calibration inputs (as in
Wanda, Sun et al., ICLR 2024, summed over outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from supernet.family import ChannelGroup
from supernet.subnets.sort import Permutations, importance_order


class _MeanSquare:
    """The mean square of each input channel of a layer over all that it was given."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._count = 0

    def add(self, x: torch.Tensor) -> None:
        """Take in (B, C, H, W), or (..., C)."""
        channels_last = x.movedim(1, -1) if x.dim() == 4 else x
        rows = channels_last.detach().flatten(0, -2).double()  # (N, C)
        total = rows.square().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)

    def root(self) -> torch.Tensor | None:
        """(C,) root mean squares; None of a layer that was never run."""
        return None if self._sum is None else (self._sum / self._count).sqrt()


@torch.inference_mode()
def activation_order(
    net: nn.Module, groups: Sequence[ChannelGroup], inputs: Iterable[torch.Tensor]
) -> Permutations:
    """Return {group name: indices of channels or units, most important first}, as sort.py does.

    `net` is the whole network in eval mode, `inputs` what it takes, batch by batch. Weights that no
    layer of the network reads as its own count by their size alone. Raises ValueError when there
    is no input.
    """
    layers = {name for group in groups for name, dim in group.consumed if dim == 1}
    seen = {f"{n}.weight": _MeanSquare() for n, _ in net.named_modules() if f"{n}.weight" in layers}
    hooks = [
        net.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(_adding(square))
        for name, square in seen.items()
    ]
    try:
        num_batches = sum(1 for _ in map(net, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if num_batches == 0:
        raise ValueError("importance by activations needs at least one batch of inputs, got none")
    state = net.state_dict()
    return importance_order({**state, **_scaled(state, seen)}, groups)


def _adding(square: _MeanSquare) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        square.add(given[0])

    return add


def _scaled(
    state: Mapping[str, torch.Tensor], seen: Mapping[str, _MeanSquare]
) -> dict[str, torch.Tensor]:
    """Weights times the root mean square of the channel that each column reads."""
    scaled: dict[str, torch.Tensor] = {}
    for name, square in seen.items():
        root, weight = square.root(), state[name]
        if root is not None and len(root) == weight.shape[1]:
            shape = (1, -1, *(1,) * (weight.dim() - 2))
            scaled[name] = weight * root.to(weight).view(shape)
    return scaled
