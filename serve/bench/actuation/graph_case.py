"""`GraphCase`: one subnet of one network, with all that both sides of a comparison are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.input import InputSpec


class GraphCase(NamedTuple):
    """One network at one size; `images` (N, C, H, W) uint8 calibrate, and are what is run on."""

    net: str
    size: str
    definition: SupernetDefinition
    arch: Arch
    state: Mapping[str, torch.Tensor]
    norm_statistics: Mapping[str, torch.Tensor]
    input: InputSpec
    images: np.ndarray
