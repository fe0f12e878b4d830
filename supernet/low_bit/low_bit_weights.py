"""`LowBitWeights`: the signed-binary weights of a supernet, one packed tensor for all subnets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

from supernet.definition import SupernetDefinition
from supernet.low_bit.covered import low_bit_names
from supernet.low_bit.packed_bits import PackedBits
from supernet.low_bit.quantisers import quantise

_BITS, _SCALE = ".bits", ".scale"


@dataclass(frozen=True)
class LowBitWeights:
    """Packed tensors by parameter name.

    `replaces` says that a checkpoint keeps nothing else of these tensors: its state holds what they
    are worth, which is not written to disk.
    """

    tensors: Mapping[str, PackedBits]
    replaces: bool = False

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor], definition: SupernetDefinition) -> LowBitWeights:
        """Quantise the layers of a state that can have it. Raises NoLowBitError without any."""
        names = low_bit_names(definition)
        return cls({n: PackedBits.of(quantise(state[n], "signed_binary")) for n in names})

    @cached_property
    def dequantised(self) -> dict[str, torch.Tensor]:
        """What the packed tensors are worth, float32 by name; made once."""
        return {name: packed.quantised().dequantised() for name, packed in self.tensors.items()}

    def in_place_of(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the state with these tensors for the latent ones."""
        return {**state, **self.dequantised}

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors here, with their scales."""
        count = sum(prod(packed.shape) for packed in self.tensors.values())
        return sum(packed.num_bits for packed in self.tensors.values()) / count

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a tensor file keeps; shapes are the definition's."""
        return {
            name + suffix: part.contiguous()
            for name, packed in self.tensors.items()
            for suffix, part in ((_BITS, packed.bits), (_SCALE, packed.scale))
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        definition: SupernetDefinition,
        *,
        replaces: bool,
    ) -> LowBitWeights:
        """Rebuild. Raises ValueError for tensors that are missing, extra or of another shape."""
        names = low_bit_names(definition)
        expected = {name + suffix for name in names for suffix in (_BITS, _SCALE)}
        wrong = sorted(expected ^ tensors.keys())
        if wrong:
            raise ValueError(f"missing or not known: {', '.join(wrong)}")
        shapes = definition.parameter_shapes()
        packed = {
            n: PackedBits(tensors[n + _BITS], tensors[n + _SCALE], shapes[n]).checked(n)
            for n in names
        }
        return cls(packed, replaces)
