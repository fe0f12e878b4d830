"""`SampleSpec`: what one sample is on its way to a device: whole numbers of a shape and a range.

An image is uint8 (C, H, W). A text is a row of token ids, of any length up to a longest one; in a
batch the shorter ones are filled up with the id that the network masks. A node of a graph is its
id, int64. Needs numpy alone: who only passes samples on loads no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """Samples are `dtype` numbers from 0 to `highest`; those of an image have `shape` (C, H, W).

    With `pad` a sample is a text: 1 to `shape[0]` ids, filled up with `pad` beside longer ones.
    One int64 number is a node's id, which may come without its dimension.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    highest: int = 255
    pad: int | None = None

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"sample shape is {self.shape}, allowed sizes of 1 or more")
        most = int(np.iinfo(self.dtype).max)
        if not 0 <= self.highest <= most:
            raise ValueError(f"highest is {self.highest}, allowed 0 to {most} ({self.dtype})")

    @property
    def is_text(self) -> bool:
        """Whether samples differ in length."""
        return self.pad is not None

    @property
    def is_node(self) -> bool:
        """Whether a sample is a node's id."""
        return self.dtype == "int64" and self.shape == (1,)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether one sample may have this shape."""
        if self.is_node:
            return tuple(shape) in ((), (1,))
        if self.is_text:
            return len(shape) == 1 and 1 <= shape[0] <= self.shape[0]
        return tuple(shape) == self.shape

    def checked(self, samples: np.ndarray) -> np.ndarray:
        """Return samples (B, ...) in the form in which they are staged; ids may be int64 too.

        Raises ValueError for another type or shape, or a number out of range: what was given and
        what is allowed.
        """
        if self._is_one_node(samples):
            return samples
        takes_both, dtype = self.is_text or self.is_node, samples.dtype
        taken = _taken(self.dtype, takes_both)
        if dtype not in taken or samples.ndim < 1 or not self.fits(samples.shape[1:]):
            kinds = " or ".join(kind.name for kind in taken)
            raise ValueError(
                f"samples are {dtype} {samples.shape}, expected {kinds} {self.allowed_shape}"
            )
        if self.highest < _most(dtype) and samples.size:
            self._check_range(samples)
        if self.is_node:
            return np.ascontiguousarray(samples, dtype=self.dtype).reshape(-1, 1)
        if dtype == _taken(self.dtype, False)[0] and samples.flags.c_contiguous:
            return samples
        return np.ascontiguousarray(samples, dtype=self.dtype)

    @property
    def allowed_shape(self) -> str:
        """The shape of B samples as an error states it."""
        if self.is_text:
            return f"(B, N) with N from 1 to {self.shape[0]}"
        if self.is_node:
            return "(B,) or (B, 1)"
        return f"(B, {', '.join(map(str, self.shape))})"

    def zeros(self, count: int) -> np.ndarray:
        """Return `count` samples of full size, all zeros."""
        return np.zeros((count, *self.shape), dtype=self.dtype)

    def noise(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` samples of full size, drawn from the whole range."""
        shape = (count, *self.shape)
        return rng.integers(0, self.highest, shape, dtype=self.dtype, endpoint=True)

    def stacked(self, parts: Sequence[np.ndarray], into: np.ndarray | None = None) -> np.ndarray:
        """Return the checked samples of `parts` as one batch; texts as long as the longest.

        `into`, room for a batch, is written instead of new memory; texts then take its full length.
        """
        if into is None and len(parts) == 1 and parts[0].flags.writeable:
            return parts[0]
        count = sum(map(len, parts))
        if into is None:
            longest = max(part.shape[1] for part in parts)
            size = (longest,) if self.is_text else self.shape
            into = np.empty((count, *size), dtype=self.dtype)
        batch = into[:count]
        if not self.is_text:
            return np.concatenate(parts, out=batch)
        batch.fill(self.pad)
        row = 0
        for part in parts:
            batch[row : row + len(part), : part.shape[1]] = part
            row += len(part)
        return batch

    def _is_one_node(self, samples: np.ndarray) -> bool:
        """Whether it is one node's id, in range and as it is staged.

        The usual case, asked in a few instructions: a small network takes no longer than `checked`.
        """
        is_one = self.is_node and samples.dtype == np.int64 and samples.shape == (1, 1)
        return is_one and 0 <= samples.item() <= self.highest

    def _check_range(self, samples: np.ndarray) -> None:
        low, high = int(samples.min()), int(samples.max())
        if low < 0 or high > self.highest:
            given = low if low < 0 else high
            raise ValueError(f"a value is {given}, allowed 0 to {self.highest}")


@functools.lru_cache(maxsize=64)
def _taken(dtype: str, takes_both: bool) -> tuple[np.dtype, ...]:
    """Return the types that samples of `dtype` may come in; names are slow to compare."""
    kinds = ("int32", "int64") if takes_both else (dtype,)
    return tuple(map(np.dtype, kinds))


@functools.lru_cache(maxsize=64)
def _most(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max)
