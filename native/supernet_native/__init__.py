"""Kernels in C++ for a CPU: linear layers of one bit, and of one byte, per weight.

`INSTRUCTION_SETS` are those that this processor can run, fastest first; a layer takes the first
unless it is given another. All of them give the same bits.
"""

from supernet_native._kernels import Int8Linear, OneBitLinear, instruction_sets

INSTRUCTION_SETS: tuple[str, ...] = tuple(instruction_sets())

__all__ = ["INSTRUCTION_SETS", "Int8Linear", "OneBitLinear"]
