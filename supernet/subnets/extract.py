"""`extract`: cut one subnet out of a supernet as an ordinary, independent module.

The extracted static network is the specification: every fast path is held equal to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice


def extract(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    arch: Arch,
    norm_statistics: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Return the subnet `arch` in eval mode, with copies of the supernet's leading slices.

    `state` is the supernet's state_dict, also one that is kept in 16 bit: the subnet is float32.
    `norm_statistics` are the subnet's own running statistics by buffer name; without them the
    slices of the supernet's statistics are taken, which describe no subnet but the largest:
    calibrate before use.
    Raises ValueError when `arch` is outside the space, KeyError when a tensor is missing.
    """
    subnet = definition.on_meta(arch)
    own = norm_statistics or {}
    tensors = {
        name: own[name].clone()
        if name in own
        else leading_slice(state[name], tuple(meta.shape)).detach().to(meta.dtype, copy=True)
        for name, meta in subnet.state_dict().items()
    }
    subnet.load_state_dict(tensors, strict=True, assign=True)
    return subnet.eval()
