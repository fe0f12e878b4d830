"""Channel importance sort: put the channels that matter first, without changing the function.

Subnets are leading slices, so the first channels should be the important ones when shrinking
begins. Importance of a channel is the L1 norm of the weights that read it (OFA, ICLR 2020). Of a
gated feed-forward's hidden unit and of a query head's channels it is the root mean square of the
activation times the L2 norm of the weights that read it (a head's is the norm over its channels):
weights alone mislead there, as a few units with massive activations bear the network and the
weights behind them are small.

The sort is global over each group: right as long as nothing smaller than the full network has been
trained yet. Residual streams are sorted too, with one order for everything that writes or reads
them, so that elastic stage widths gain from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from supernet.family import ChannelGroup
from supernet.subnets.input_scales import measure_input_scales

Permutations = dict[str, list[int]]
Activations = Mapping[str, torch.Tensor]  # root mean square activation per channel, by group


@torch.no_grad()
def importance_order(
    state: Mapping[str, torch.Tensor],
    groups: Sequence[ChannelGroup],
    activations: Activations | None = None,
) -> Permutations:
    """Return {group name: indices of channels or units, most important first}.

    Ties keep their order. Raises ValueError for a group whose importance its activations tell
    (`ChannelGroup.activations_at`) when `activations` lacks it.
    """
    order: Permutations = {}
    for group in groups:
        if group.activations_at is not None:
            importance = _by_activations(state, group, activations or {})
        else:
            importance = sum(
                _units(state[name].detach().movedim(dim, 0), group).flatten(1).abs().double().sum(1)
                for name, dim in group.consumed
            )
        assert isinstance(importance, torch.Tensor), f"group {group.name} has no consumer"
        order[group.name] = torch.argsort(importance, descending=True, stable=True).tolist()
    return order


def keeping_parity(order: Permutations) -> Permutations:
    """Return the order with even channels in even places and odd ones in odd places.

    Of each parity the most important come first. Signed-binary weights have their signs by it.

    >>> keeping_parity({"g": [3, 1, 0, 2]})
    {'g': [0, 3, 2, 1]}
    """
    kept: Permutations = {}
    for name, indices in order.items():
        places = list(indices)
        places[0::2] = [i for i in indices if i % 2 == 0]
        places[1::2] = [i for i in indices if i % 2 == 1]
        kept[name] = places
    return kept


def rms_activations(
    net: nn.Module, groups: Sequence[ChannelGroup], batches: Iterable[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Run `net` over batches; return each channel's root mean square, float64, by group.

    Measured are the inputs of the module that each group's `activations_at` names; groups without
    it are left out. Text should be broad: on SmolLM2 repetitive text cost half of what sorting
    gives. Raises ValueError when there is no batch.
    """
    layers = {g.name: g.activations_at for g in groups if g.activations_at is not None}
    scales = measure_input_scales(net, layers.values(), batches)
    return {group: scales[layer] for group, layer in layers.items() if layer in scales}


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
                units = _units(tensors[name].movedim(dim, 0), group)
                units.copy_(units.index_select(0, index.to(units.device)))


def _by_activations(
    state: Mapping[str, torch.Tensor], group: ChannelGroup, activations: Activations
) -> torch.Tensor:
    if group.name not in activations:
        raise ValueError(
            f"{group.name} can't be sorted by its weights: importance in a gated feed-forward or "
            "among query heads comes from activations; give text to measure them on, or do not sort"
        )
    squares = sum(
        state[name].detach().movedim(dim, 0).flatten(1).double().square().sum(1)
        for name, dim in group.consumed
    )
    assert isinstance(squares, torch.Tensor), f"group {group.name} has no consumer"
    carried = activations[group.name].to(squares).square() * squares
    return _units(carried, group).sum(1).sqrt()


def _units(tensor: torch.Tensor, group: ChannelGroup) -> torch.Tensor:
    """View (channels, ...) as (units, channels per unit, ...); a unit is one channel by default."""
    first, step = group.among
    return tensor.unflatten(0, (group.units or len(tensor), -1))[first::step]
