"""Supernets: one network whose leading weight slices are thousands of smaller ones.

A name is imported when it is first used, so that what needs no torch comes without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supernet.arch import Arch
    from supernet.checkpoint import (
        Checkpoint,
        CheckpointError,
        ServedSubnet,
        load_checkpoint,
        save_checkpoint,
    )
    from supernet.definition import SupernetDefinition, create_supernet, define_supernet
    from supernet.family import ChannelGroup, Family
    from supernet.input import InputSpec
    from supernet.layers.blocks import BlockSequence
    from supernet.registry import list_supernets, register_family, supernet_family
    from supernet.space import SearchSpace
    from supernet.subnets.calibrate import calibrate
    from supernet.subnets.cost import cost
    from supernet.subnets.extract import extract
    from supernet.subnets.subgraph import Subgraph

__all__ = [
    "Arch",
    "BlockSequence",
    "ChannelGroup",
    "Checkpoint",
    "CheckpointError",
    "Family",
    "InputSpec",
    "SearchSpace",
    "ServedSubnet",
    "Subgraph",
    "SupernetDefinition",
    "calibrate",
    "cost",
    "create_supernet",
    "define_supernet",
    "extract",
    "list_supernets",
    "load_checkpoint",
    "register_family",
    "save_checkpoint",
    "supernet_family",
]

_HOMES = {
    "Arch": "supernet.arch",
    "BlockSequence": "supernet.layers.blocks",
    "ChannelGroup": "supernet.family",
    "Checkpoint": "supernet.checkpoint",
    "CheckpointError": "supernet.checkpoint",
    "Family": "supernet.family",
    "InputSpec": "supernet.input",
    "SearchSpace": "supernet.space",
    "ServedSubnet": "supernet.checkpoint",
    "Subgraph": "supernet.subnets.subgraph",
    "SupernetDefinition": "supernet.definition",
    "calibrate": "supernet.subnets.calibrate",
    "cost": "supernet.subnets.cost",
    "create_supernet": "supernet.definition",
    "define_supernet": "supernet.definition",
    "extract": "supernet.subnets.extract",
    "list_supernets": "supernet.registry",
    "load_checkpoint": "supernet.checkpoint",
    "register_family": "supernet.registry",
    "save_checkpoint": "supernet.checkpoint",
    "supernet_family": "supernet.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
