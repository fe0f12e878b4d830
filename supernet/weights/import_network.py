"""`imported_checkpoint`: foreign weights as a checkpoint folder of ours, channels sorted.

The largest subnet can be served at once. Smaller subnets of families with BatchNorm need their own
statistics first (calibration on data); families without, such as the transformers, can list any.
What is not measured is not claimed: accuracy is 0 with a confidence interval from 0 to 1 unless
the caller knows better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from supernet.arch import Arch
from supernet.checkpoint import Checkpoint, ServedSubnet
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice
from supernet.subnets.cost import cost
from supernet.subnets.sort import importance_order, permute_channels
from supernet.weights.expected_input import input_of
from supernet.weights.naming import State

_STATISTICS = ("running_mean", "running_var")


def imported_checkpoint(
    definition: SupernetDefinition,
    state: State,
    *,
    name: str,
    origin: str = "",
    archs: Sequence[Arch] = (),
    sort: bool = True,
    accuracy: float | None = None,
    accuracy_source: str = "not measured",
    provenance: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Return a checkpoint that serves the largest subnet and `archs`.

    `name` is that of the network as its `origin` calls it, which tells its input. `accuracy` is the
    largest subnet's. `state` is sorted in place unless `sort` is false; the
    permutation is kept in the checkpoint. Raises ValueError for further archs in a family whose
    normalisation needs calibration.
    """
    largest = definition.space.largest
    if archs and definition.buffer_shapes(largest):
        raise ValueError(
            f"{definition.family_name} has BatchNorm: smaller subnets need statistics of their "
            "own, calibrate them on data first"
        )
    permutation: dict[str, list[int]] | None = None
    if sort:
        groups = definition.family.channel_groups(definition.config)
        permutation = importance_order(state, groups)
        permute_channels(state, groups, permutation)
    served = [_served(definition, arch, None) for arch in archs if arch != largest]
    served.append(_served(definition, largest, accuracy))
    return Checkpoint(
        name=name,
        definition=definition,
        input=input_of(definition, name, origin),
        state=state,
        norm_statistics={
            subnet.subnet_id: _statistics(definition, state, subnet.arch) for subnet in served
        },
        subnets=tuple(sorted(served, key=lambda subnet: (subnet.macs, subnet.subnet_id))),
        accuracy_source=accuracy_source,
        permutation=permutation,
        provenance=dict(provenance or {}),
    )


def _served(definition: SupernetDefinition, arch: Arch, accuracy: float | None) -> ServedSubnet:
    macs, params = cost(definition, arch)
    interval = (0.0, 1.0) if accuracy is None else (accuracy, accuracy)
    return ServedSubnet(
        arch=arch, accuracy=accuracy or 0.0, ci95=interval, macs=macs, params=params
    )


def _statistics(
    definition: SupernetDefinition, state: State, arch: Arch
) -> dict[str, torch.Tensor]:
    """The running statistics that came with the weights: right for the largest subnet."""
    return {
        name: leading_slice(state[name], shape).clone()
        for name, shape in definition.buffer_shapes(arch).items()
        if name.endswith(_STATISTICS)
    }
