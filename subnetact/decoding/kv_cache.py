"""`KVCache`: keys and values of many sequences in one slab per layer, read as views.

Where they lie is the table's business (`extents.py`). Their shape does not depend on the width of
the subnet that wrote them, so any subnet reads any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from subnetact.decoding.extents import ExtentTable, Run


class CacheShape(NamedTuple):
    """What one token takes: layers, groups of keys and values, head dimension."""

    layers: int
    groups: int
    head_dim: int

    def token_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.groups * self.head_dim * dtype.itemsize


class KVCache:
    """Room for `capacity_tokens` tokens; `keys` and `values` are (layers, groups, slots, D)."""

    def __init__(
        self,
        shape: CacheShape,
        capacity_tokens: int,
        *,
        block_tokens: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        spare_slots: int = 0,
    ):
        """`spare_slots` are more than the table hands out, behind the others.

        Raises ValueError for a capacity below one block, or for which a CPU has no memory.
        """
        blocks = max(0, capacity_tokens // block_tokens)
        slots = blocks * block_tokens + spare_slots
        size = (shape.layers, shape.groups, slots, shape.head_dim)
        try:
            self.keys = torch.zeros(size, dtype=dtype, device=device)
            self.values = torch.zeros(size, dtype=dtype, device=device)
        except (RuntimeError, OverflowError, TypeError):  # the last two: a size beyond 64 bits
            if torch.device(device).type != "cpu":  # whose memory they know who asked for it
                raise
            gibibytes = slots * shape.token_bytes(dtype) / 2**30
            raise ValueError(
                f"a cache of {capacity_tokens} tokens takes {gibibytes:.4g} GiB, which are not to "
                "be had; give fewer"
            ) from None
        self.table = ExtentTable(blocks, block_tokens)  # behind them: its lists would be touched
        self._layers = list(zip(self.keys.unbind(0), self.values.unbind(0), strict=True))

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.keys.nbytes + self.values.nbytes

    def write(
        self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Write keys and values (T, groups, D) into slots (T,)."""
        own_keys, own_values = self._layers[layer]
        own_keys.index_copy_(1, slots, keys.transpose(0, 1))
        own_values.index_copy_(1, slots, values.transpose(0, 1))

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values of a layer, (groups, slots, D) each."""
        return self._layers[layer]

    def fill(self, slots: torch.Tensor, seed: int) -> None:
        """Write random keys and values into slots (T,) of all layers, to measure what reads cost.

        Memory that nobody has written is all one page of zeros, which is read from the cache.
        """
        layers, groups, _, head_dim = self.keys.shape
        generator = torch.Generator().manual_seed(seed)
        size = (2, groups, len(slots), head_dim)
        drawn = torch.randn(size, generator=generator).to(self.keys)
        slots = slots.to(self.keys.device)
        for layer in range(layers):
            self.keys[layer].index_copy_(1, slots, drawn[0])
            self.values[layer].index_copy_(1, slots, drawn[1])

    def clear(self, runs: Iterable[Run]) -> None:
        """Make keys and values of runs of slots zeros in all layers."""
        for begin, length in runs:
            self.keys.narrow(2, begin, length).zero_()
            self.values.narrow(2, begin, length).zero_()

    def view(self, layer: int, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a run of slots, (groups, count, D) views each."""
        keys, values = self._layers[layer]
        return keys.narrow(1, run.begin, run.length), values.narrow(1, run.begin, run.length)
