"""`DecodeAttention`: what the decodes of one iteration attend to, planned once for all layers.

A decode's attention takes microseconds, as long as the calls around it, so what does not depend on
the layer is done before the first: views of keys and values for every layer, and which decodes lie
in equally many slabs. These are merged together, in one softmax over their log-sum-exps, however
many they are. Equal to `attend` (attention.py) decode by decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from subnetact.decoding.attention import flash_operator
from subnetact.decoding.extents import Run


class Decode(NamedTuple):
    """A row of the batch, and the runs of slots of all that it attends to, itself included."""

    row: int
    runs: list[Run]


class _SlabGroup(NamedTuple):
    """Decodes that lie in equally many slabs; views (1, groups, slots, D) slab by slab."""

    rows: list[int]
    where: torch.Tensor  # (n,), the rows as an index
    num_slabs: int
    keys: list[tuple[torch.Tensor, ...]]  # by slab and decode, then by layer
    values: list[tuple[torch.Tensor, ...]]


class DecodeAttention:
    """Attention of single rows over their slabs, layer by layer."""

    def __init__(self, decodes: Sequence[Decode], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Plan for keys and values (layers, groups, slots, D) of a whole cache.

        Needs the operator that gives log-sum-exps (`has_log_sum_exp`).
        """
        by_slabs: dict[int, list[Decode]] = {}
        for decode in decodes:
            by_slabs.setdefault(len(decode.runs), []).append(decode)
        self._flash = flash_operator()
        pools = keys.unsqueeze(1), values.unsqueeze(1)
        self._groups = [_group(members, pools) for members in by_slabs.values()]

    def into(self, mixed: torch.Tensor, query: torch.Tensor, layer: int) -> None:
        """Write the decodes' rows of `mixed`, (T, ranks, groups, D) like `query`."""
        own = query.transpose(1, 2).split(1)  # T of (1, groups, ranks, D)
        for rows, where, num_slabs, keys, values in self._groups:
            parts = [
                self._flash(own[row], k[layer], v[layer], 0.0, False)
                for row, k, v in zip(rows * num_slabs, keys, values, strict=True)
            ]
            found = torch.cat([part[0] for part in parts])  # (slabs * n, groups, ranks, D)
            if num_slabs > 1:
                norms = torch.cat([part[1] for part in parts]).unflatten(0, (num_slabs, -1))
                weights = norms.softmax(0).unsqueeze(-1)
                found = (found.unflatten(0, (num_slabs, -1)) * weights).sum(0)
            mixed.index_copy_(0, where, found.transpose(1, 2))


def _group(members: list[Decode], pools: tuple[torch.Tensor, torch.Tensor]) -> _SlabGroup:
    rows, num_slabs = [decode.row for decode in members], len(members[0].runs)
    runs = [decode.runs[i] for i in range(num_slabs) for decode in members]
    keys, values = (
        [pool.narrow(3, run.begin, run.length).unbind(0) for run in runs] for pool in pools
    )
    return _SlabGroup(rows, torch.tensor(rows, dtype=torch.long), num_slabs, keys, values)
