"""Supernets: one network whose leading weight slices are thousands of smaller ones."""

from supernet.arch import Arch
from supernet.blocks import BlockSequence
from supernet.calibrate import calibrate
from supernet.checkpoint import (
    Checkpoint,
    CheckpointError,
    ServedSubnet,
    load_checkpoint,
    save_checkpoint,
)
from supernet.cost import cost
from supernet.definition import SupernetDefinition
from supernet.extract import extract
from supernet.family import ChannelGroup, Family
from supernet.input import InputSpec
from supernet.registry import (
    create_supernet,
    define_supernet,
    list_supernets,
    register_family,
    supernet_family,
)
from supernet.space import SearchSpace
from supernet.subgraph import Subgraph

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
