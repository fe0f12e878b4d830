"""Supernets: one network whose leading weight slices are thousands of smaller ones."""

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
