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
    """Return {group name: indices of channels or units, most important first}.

    Ties keep their order.
    """
    order: Permutations = {}
    for group in groups:
        importance = sum(
            _units(state[name].detach().movedim(dim, 0), group).flatten(1).abs().double().sum(1)
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
                channels_first = tensors[name].movedim(dim, 0)
                units = _units(channels_first, group)
                permuted = units.index_select(0, index.to(units.device))
                channels_first.copy_(permuted.flatten(0, 1))


def _units(tensor: torch.Tensor, group: ChannelGroup) -> torch.Tensor:
    """View (channels, ...) as (units, channels per unit, ...); a unit is one channel by default."""
    return tensor.unflatten(0, (group.units or len(tensor), -1))
