"""SUSHI's encoding of a subnet or subgraph: kernels and channels per layer, 0 where absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from supernet.arch import Arch
from supernet.definition import SupernetDefinition

Widths = Mapping[str, tuple[int, int]]
"""{weight: its kernels and channels}."""


def widths_of(definition: SupernetDefinition, arch: Arch) -> dict[str, tuple[int, int]]:
    """Return the kernels and channels of every weight that a subnet computes with."""
    shapes = definition.parameter_shapes(arch)
    return {name: (s[0], s[1]) for name, s in shapes.items() if len(s) >= 2}


def layers_of(subnets: Iterable[Widths]) -> list[str]:
    """Return the weights of some subnets, in the order that encodings use."""
    return sorted({name for widths in subnets for name in widths})


def encode(subnets: Iterable[Widths], layers: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return [kernels, channels] of the largest of `subnets` at each layer, one after another."""
    encoding = np.zeros(2 * len(layers))
    for widths in subnets:
        rows = [widths.get(layer, (0, 0)) for layer in layers]
        encoding = np.maximum(encoding, np.array(rows, dtype=np.float64).ravel())
    return encoding
