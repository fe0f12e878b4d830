"""`PackedBits`: one signed-binary tensor as bits, and as the words that kernels read.

In a file the bits of a tensor follow each other without gaps, 8 to a byte, the lowest first; the
signs need none, they alternate from row to row. For a kernel each row begins a new word of 64.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import torch

from supernet.low_bit.quantisers import Quantised, row_signs

_WORD = 64


class PackedBits(NamedTuple):
    """Bits (uint8) of a signed-binary weight of `shape`, and its scale (float16, (rows,) or (1,)).

    Raises ValueError on `of` for codes that are not signed binary, and on `checked`.
    """

    bits: torch.Tensor
    scale: torch.Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, quantised: Quantised) -> PackedBits:
        """Pack codes that are 0 or the sign of their row."""
        codes = quantised.codes.cpu()
        ones = codes != 0
        signs = row_signs(len(codes)).view(-1, *[1] * (codes.dim() - 1))
        if not torch.equal(codes, ones * signs):
            raise ValueError(
                "codes are not signed binary: even rows have 0 and 1 alone, odd ones 0 and -1"
            )
        packed = np.packbits(ones.flatten().numpy(), bitorder="little")
        return cls(torch.from_numpy(packed), quantised.scale.cpu(), tuple(codes.shape))

    @property
    def num_bits(self) -> int:
        """What is stored for the tensor: its bits in whole bytes, and its scales."""
        return 8 * (self.bits.nbytes + self.scale.nbytes)

    def checked(self, name: str) -> PackedBits:
        """Return itself. Raises ValueError naming a tensor whose parts do not fit its shape."""
        num_bytes = -(-prod(self.shape) // 8)
        if self.bits.dtype != torch.uint8 or self.bits.shape != (num_bytes,):
            raise ValueError(f"{name}: {tuple(self.bits.shape)} bytes, expected ({num_bytes},)")
        if self.scale.dtype != torch.float16 or self.scale.shape not in ((1,), self.shape[:1]):
            raise ValueError(
                f"{name}: scale {tuple(self.scale.shape)}, expected float16 (1,) or "
                f"({self.shape[0]},)"
            )
        return self

    def quantised(self) -> Quantised:
        """The codes and scales again, exactly."""
        count = prod(self.shape)
        ones = np.unpackbits(self.bits.numpy(), count=count, bitorder="little")
        codes = torch.from_numpy(ones.reshape(self.shape).astype(np.int8))
        signs = row_signs(self.shape[0]).view(-1, *[1] * (len(self.shape) - 1))
        return Quantised(codes * signs, self.scale)

    def words(self) -> torch.Tensor:
        """(rows, words) int64: bit i of word j of a row is its weight 64 j + i, the rest zeros."""
        ones = (self.quantised().codes != 0).flatten(1).numpy()
        rows, count = ones.shape
        whole = np.zeros((rows, -(-count // _WORD) * _WORD), dtype=np.uint8)
        whole[:, :count] = ones
        packed = np.packbits(whole, axis=1, bitorder="little")
        return torch.from_numpy(packed.view("<i8").astype(np.int64))

    def signed_scales(self) -> torch.Tensor:
        """(rows,) float32: what a row's ones are worth."""
        rows = self.shape[0]
        return row_signs(rows) * self.scale.float().expand(rows)
