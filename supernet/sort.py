"""Channel importance sort: put the channels that matter first, without changing the function.

Subnets are leading slices, so the first channels should be the important ones when shrinking
begins. Importance of a channel is the L1 norm of the weights that read it (OFA, ICLR 2020). The
sort is global over each group: right as long as nothing smaller than the full network has been
trained yet. Residual streams are sorted too, with one order for everything that writes or reads
them, so that elastic stage widths gain from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from supernet.family import ChannelGroup

Permutations = dict[str, list[int]]


@torch.no_grad()
def importance_order(
    state: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup]
) -> Permutations:
    """Return {group name: channel indices, most important first}; ties keep their order."""
    order: Permutations = {}
    for group in groups:
        importance = sum(
            state[name].detach().abs().movedim(dim, 0).flatten(1).sum(1).to(torch.float64)
            for name, dim in group.consumed
        )
        assert isinstance(importance, torch.Tensor), f"group {group.name} has no consumer"
        order[group.name] = torch.argsort(importance, descending=True, stable=True).tolist()
    return order


@torch.no_grad()
def permute_channels(
    tensors: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup], order: Permutations
) -> None:
    """Permute tensors in place: weights, statistics, and any state kept per weight.

    Call it with the state_dict, with the momentum buffers and with the averaged weights, each
    keyed by parameter name; names that a mapping lacks are skipped.
    """
    for group in groups:
        index = torch.tensor(order[group.name])
        for name, dim in (*group.produced, *group.consumed):
            if name in tensors:
                tensor = tensors[name]
                tensor.copy_(tensor.index_select(dim, index.to(tensor.device)))
