"""Channel importance by what channels carry: size of the weights that read them times their values.

The sort by weights alone (sort.py) takes a channel that is always near zero for an important one
when its readers are large, as they are in networks that were trained elsewhere. Here the L1 norm of
the reading weights is scaled by the channel's root mean square over calibration inputs (as in
Wanda, Sun et al., ICLR 2024, summed over outputs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from supernet.family import ChannelGroup
from supernet.subnets.input_scales import measure_input_scales
from supernet.subnets.sort import Permutations, importance_order


@torch.inference_mode()
def activation_order(
    net: nn.Module, groups: Sequence[ChannelGroup], inputs: Iterable[torch.Tensor]
) -> Permutations:
    """Return {group name: indices of channels or units, most important first}, as sort.py does.

    `net` is the whole network in eval mode, `inputs` what it takes, batch by batch. Weights that no
    layer of the network reads as its own count by their size alone. Raises ValueError when there
    is no input.
    """
    read = {name for group in groups for name, dim in group.consumed if dim == 1}
    layers = [name for name, _ in net.named_modules() if f"{name}.weight" in read]
    scales = measure_input_scales(net, layers, inputs)
    state = net.state_dict()
    return importance_order({**state, **_scaled(state, scales)}, groups)


def _scaled(
    state: Mapping[str, torch.Tensor], scales: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Weights times the root mean square of the channel that each column reads."""
    scaled: dict[str, torch.Tensor] = {}
    for layer, scale in scales.items():
        weight = state[f"{layer}.weight"]
        if len(scale) == weight.shape[1]:
            shape = (1, -1, *(1,) * (weight.dim() - 2))
            scaled[f"{layer}.weight"] = weight * scale.to(weight).view(shape)
    return scaled
