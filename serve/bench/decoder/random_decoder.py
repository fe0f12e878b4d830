"""A decoder with random weights: time does not depend on their values."""

from __future__ import annotations

from supernet.checkpoint import Checkpoint, ServedSubnet
from supernet.definition import SupernetDefinition
from supernet.subnets.cost import cost
from supernet.weights.expected_input import input_of


def random_checkpoint(definition: SupernetDefinition) -> Checkpoint:
    """A decoder with random weights that serves half and full width."""
    space = definition.space
    archs = (space.uniform(expand=0.5), space.largest)
    return Checkpoint(
        name=definition.family_name,
        definition=definition,
        input=input_of(definition, ""),
        state={name: tensor.detach() for name, tensor in definition.build().state_dict().items()},
        norm_statistics={arch.subnet_id: {} for arch in archs},
        subnets=tuple(
            ServedSubnet(arch=a, accuracy=0.0, ci95=(0.0, 1.0), **cost(definition, a)._asdict())
            for a in archs
        ),
    )
