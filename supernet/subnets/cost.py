"""MACs and parameters of a subnet, counted on the extracted static network without weights.

MACs are those of convolutions, linear layers and attention matmuls, nothing else; that is the
convention of the literature ("MFLOPs" in OFA and DepS are these MACs in millions).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.layers.causal import CausalCore, TiedHead
from supernet.layers.transformer import AttentionCore


class Cost(NamedTuple):
    """Cost of one sample: multiply-accumulates and parameters."""

    macs: int
    params: int


@lru_cache(maxsize=4096)
def cost(definition: SupernetDefinition, arch: Arch) -> Cost:
    """Count one sample at the arch's resolution. Raises ValueError outside the space."""
    net = definition.on_meta(arch).eval()
    macs: list[int] = []

    def count_conv(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        weight = module.get_parameter("weight")  # (out, in per group, kernel, kernel)
        macs.append(output[0].numel() * prod(weight.shape[1:]))

    def count_linear(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        # The sample is one, but a graph network reads many nodes for it.
        macs.append(output.numel() * module.get_parameter("weight").shape[1])

    def count_attention(_module: nn.Module, inputs: Any, _output: torch.Tensor) -> None:
        _, num_heads, num_asking, head_dim = inputs[0].shape
        macs.append(2 * num_heads * num_asking * inputs[1].shape[2] * head_dim)

    def count_tied_head(_module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        macs.append(output[0].numel() * inputs[1].shape[1])

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count_conv)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(count_linear)
        elif isinstance(module, AttentionCore | CausalCore):
            module.register_forward_hook(count_attention)
        elif isinstance(module, TiedHead):
            module.register_forward_hook(count_tied_head)
    with torch.inference_mode(), torch.device("meta"):
        net(definition.example_input(arch))
    return Cost(sum(macs), sum(p.numel() for p in net.parameters()))


def cost_of_alike_blocks(definition: SupernetDefinition, arch: Arch) -> Cost:
    """Count as `cost` does, where all blocks of the one stage are alike, as a decoder's are.

    Building thirty blocks takes half a second, and a search counts thousands of patterns. Here only
    uniform archs are built, one for each kind of block: the mean of their costs over the blocks is
    the pattern's cost, to the last MAC, as what is beside the blocks is in each of them once.
    """
    assert len(arch.depth) == 1, "one stage"
    kinds = Counter(zip_longest(arch.expand, arch.heads))
    count = kinds.total()
    macs = params = 0
    for (expand, heads), times in kinds.items():
        uniform = replace(
            arch,
            expand=() if expand is None else (expand,) * count,
            heads=() if heads is None else (heads,) * count,
        )
        own = cost(definition, uniform)
        macs, params = macs + times * own.macs, params + times * own.params
    return Cost(macs // count, params // count)
