"""Which tensors of a supernet have low-bit weights.

Convolutions but for the first, depthwise ones, gates (squeeze-excite) and projections of shortcuts;
of decoders the feed-forwards. All else stays float: the first and last layer, what is small, and
what is read in full by every output anyway (embeddings, norms, attention).
"""

from __future__ import annotations

from functools import lru_cache

from torch import nn

from supernet.definition import SupernetDefinition
from supernet.layers.causal import GatedMlp
from supernet.layers.inverted_residual import SqueezeExcite

_PROJECTION = "downsample"


class NoLowBitError(ValueError):
    """A family has no layer that takes low-bit weights."""


@lru_cache(maxsize=64)
def low_bit_names(definition: SupernetDefinition) -> tuple[str, ...]:
    """Names of the parameters with low-bit weights. Raises NoLowBitError where there are none."""
    net = definition.on_meta()
    gates = [n for n, module in net.named_modules() if isinstance(module, SqueezeExcite)]
    convolutions = [n for n, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    names = [
        f"{name}.weight"
        for name in convolutions[1:]
        if net.get_submodule(name).groups == 1
        and _PROJECTION not in name.split(".")
        and not any(name.startswith(f"{gate}.") for gate in gates)
    ]
    for name, module in net.named_modules():
        if isinstance(module, GatedMlp):
            names += [f"{name}.{part}.weight" for part in ("gate", "up", "down")]
    if not names:
        raise NoLowBitError(
            f"{definition.family_name} has no layer for low-bit weights: those are convolutions "
            "that are neither the first nor depthwise, and feed-forwards of decoders"
        )
    return tuple(names)
