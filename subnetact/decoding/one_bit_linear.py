"""Linear layers of one bit per weight: signed-binary weights, activations rounded to int8 per row.

    y[t, n] = step[t] * scale[n] * sum over i of q[t, i] * bit[n, i]

q is x rounded to int8 by its row's largest magnitude, step what one of its 255 levels is worth,
scale[n] a row's scale with its sign. The sum is of integers, so the kernel in C++
(`supernet-serving-native`, native/) and the plain path here give the same bits. All widths read
prefixes of the same words.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from subnetact.decoding.linear_forms import LinearForm
from supernet.low_bit.packed_bits import PackedBits

logger = logging.getLogger(__name__)

NATIVE = "supernet_native"
_LEVELS = 127.0
_SMALLEST = 1e-30  # below it the reciprocal would overflow
_EXACT_INPUTS = 2**24 // 127  # up to which float32 holds every sum
_WORD = 64


class OneBitTable(NamedTuple):
    """A whole weight as kernels read it: words (rows, words) int64, scales (rows,) with signs."""

    words: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, packed: PackedBits) -> OneBitTable:
        """Lay out the bits of a (rows, in) weight: each row begins a new word."""
        return cls(packed.words(), packed.signed_scales())


def one_bit_linear(table: OneBitTable, shape: tuple[int, ...]) -> LinearForm:
    """Return the layer of the leading (out, in) of a table, by the kernel where it is installed."""
    kernels = native_kernels()
    if kernels is None:
        return PlainOneBitLinear(table, shape)
    return NativeOneBitLinear(table, shape, kernels.OneBitLinear)


@cache
def native_kernels() -> Any:
    """The module of kernels, None where it is not installed; then a line is logged, once."""
    try:
        return import_module(NATIVE)
    except ImportError as error:
        logger.warning(
            "one-bit layers run by torch, slower and with the same results: %s; "
            "pip install ./native (docs/one_bit.md)",
            error,
        )
        return None


class NativeOneBitLinear:
    """The layer by the kernel; (T, in) float32 to (T, out). In one thread."""

    def __init__(
        self, table: OneBitTable, shape: tuple[int, ...], make: Any, instruction_set: str = ""
    ):
        """`make` is the kernels' `OneBitLinear`; without an `instruction_set` it takes the best."""
        self.num_outputs, self.num_inputs = shape
        words = table.words[: self.num_outputs, : -(-self.num_inputs // _WORD)]  # a view: no copy
        self._layer = make(words, table.scales[: self.num_outputs], instruction_set)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens, inputs = x.shape
        if inputs != self.num_inputs or x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(
                f"x is {x.dtype} {tuple(x.shape)} on {x.device}, expected torch.float32 "
                f"(tokens, {self.num_inputs}) on cpu"
            )
        x, y = x.contiguous(), torch.empty(tokens, self.num_outputs)
        # By addresses: handing over tensors takes ten microseconds, a layer's own time.
        self._layer.run_at(x.data_ptr(), tokens, inputs, y.data_ptr())
        return y


class PlainOneBitLinear:
    """The same by torch, from bits expanded to floats; (T, in) float32 to (T, out)."""

    def __init__(self, table: OneBitTable, shape: tuple[int, ...]):
        num_outputs, num_inputs = shape
        dtype = torch.float32 if num_inputs <= _EXACT_INPUTS else torch.float64
        self._ones = expanded(table.words[:num_outputs], num_inputs).to(dtype)
        self._scales = table.scales[:num_outputs]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, steps = rounded_rows(x)
        sums = F.linear(values.to(self._ones.dtype), self._ones).float()
        return sums * steps[:, None] * self._scales


def rounded_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round rows (T, in) to whole numbers from -127 to 127; also what one is worth, (T,).

    A row with an infinite value or a NaN becomes zeros that are worth NaN each.
    """
    most = x.abs().amax(1)
    is_finite = most.isfinite()
    is_used = is_finite & (most >= _SMALLEST)
    steps = torch.where(is_used, most / _LEVELS, 0.0).where(is_finite, torch.nan)
    values = torch.where(is_used[:, None], (x * (_LEVELS / most)[:, None]).round(), 0.0)
    return values, steps


def expanded(words: torch.Tensor, num_inputs: int) -> torch.Tensor:
    """The first bits of each row of words (rows, words) as (rows, in) booleans."""
    places = torch.arange(_WORD)
    bits = (words[:, : -(-num_inputs // _WORD), None] >> places) & 1
    return bits.flatten(1)[:, :num_inputs].bool()
