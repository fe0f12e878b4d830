"""`DecodeAttention`: what the decodes of one iteration attend to, planned once for all layers.

A decode's attention takes microseconds, as long as the calls around it, so what does not depend on
the layer is done before the first: views of keys and values for every layer, and which decodes lie
in equally many slabs. These are merged together, in one softmax over their log-sum-exps, however
many they are. Equal to `attend` (attention.py) decode by decode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from subnetact.decoding.attention import flash_operator
from subnetact.decoding.extents import Run


class Decode(NamedTuple):
    """A row of the batch, and the runs of slots of all that it attends to, itself included."""

    row: int
    runs: list[Run]


class DecodePart(NamedTuple):
    """Of some decodes: their rows (n,), attention (n, ranks, groups, D), log-sum-exps without D."""

    where: torch.Tensor
    mixed: torch.Tensor
    norm: torch.Tensor


class _SlabGroup(NamedTuple):
    """Decodes that lie in equally many slabs; views (1, groups, slots, D) slab by slab."""

    rows: list[int]  # of each slab of each decode
    where: torch.Tensor  # (n,), the decodes' rows as an index
    num_slabs: int
    slabs: list[list[tuple[torch.Tensor, torch.Tensor]]]  # by layer: keys and values of each


class DecodeAttention:
    """Attention of single rows over their slabs, layer by layer."""

    def __init__(self, decodes: Sequence[Decode], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Plan for keys and values (layers, groups, slots, D) of a whole cache.

        Needs the operator that gives log-sum-exps (`has_log_sum_exp`).
        """
        by_slabs: dict[int, list[Decode]] = {}
        for decode in decodes:
            by_slabs.setdefault(len(decode.runs), []).append(decode)
        self._flash = flash_operator() if decodes else None
        pools = keys.unsqueeze(1), values.unsqueeze(1)
        self._groups = [_group(members, pools) for members in by_slabs.values()]
        # Whether its rows are 0, 1, 2, ..., all in equally many slabs.
        self.is_in_order = len(by_slabs) == 1 and all(
            decode.row == row for row, decode in enumerate(decodes)
        )

    def attend(self, query: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the attention of a batch of decodes alone, (T, ranks, groups, D) like `query`."""
        if self.is_in_order:  # the usual case: nothing to put anywhere
            return self._attend(self._groups[0], query, layer)
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        self.into(mixed, query, layer)
        return mixed

    def into(self, mixed: torch.Tensor, query: torch.Tensor, layer: int) -> None:
        """Write the decodes' rows of `mixed`, (T, ranks, groups, D) like `query`."""
        for group in self._groups:
            mixed.index_copy_(0, group.where, self._attend(group, query, layer))

    def parts(self, query: torch.Tensor, layer: int) -> Iterator[DecodePart]:
        """Yield the decodes' attention with its log-sum-exp, where others hold more of them.

        `query` is (T, ranks, groups, D). Parts are of different decodes.
        """
        for group in self._groups:
            yield DecodePart(group.where, *self._attend_with_norm(group, query, layer))

    def _attend(self, group: _SlabGroup, query: torch.Tensor, layer: int) -> torch.Tensor:
        """(n, ranks, groups, D) of the group's decodes, in their order."""
        parts = self._read(group, query, layer)
        found = torch.cat([part[0] for part in parts])  # (slabs * n, groups, ranks, D)
        if group.num_slabs > 1:
            norms = torch.cat([part[1] for part in parts]).unflatten(0, (group.num_slabs, -1))
            weights = norms.softmax(0).unsqueeze(-1)
            found = (found.unflatten(0, (group.num_slabs, -1)) * weights).sum(0)
        return found.transpose(1, 2)

    def _attend_with_norm(
        self, group: _SlabGroup, query: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_attend`, and its log-sum-exp (n, ranks, groups)."""
        parts = self._read(group, query, layer)
        found, norm = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        if group.num_slabs > 1:
            norms = norm.unflatten(0, (group.num_slabs, -1))
            norm = norms.logsumexp(0)
            weights = (norms - norm).exp().unsqueeze(-1)
            found = (found.unflatten(0, (group.num_slabs, -1)) * weights).sum(0)
        return found.transpose(1, 2), norm.transpose(1, 2)

    def _read(
        self, group: _SlabGroup, query: torch.Tensor, layer: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Attention over each slab of each decode, (1, groups, ranks, D), and its log-sum-exp."""
        assert self._flash is not None, "there are decodes"
        flash, own = self._flash, query.transpose(1, 2).split(1)  # T of (1, groups, ranks, D)
        return [
            flash(own[row], keys, values)
            for row, (keys, values) in zip(group.rows, group.slabs[layer], strict=True)
        ]


def _group(members: list[Decode], pools: tuple[torch.Tensor, torch.Tensor]) -> _SlabGroup:
    rows, num_slabs = [decode.row for decode in members], len(members[0].runs)
    runs = [decode.runs[i] for i in range(num_slabs) for decode in members]
    keys, values = (
        [pool.narrow(3, run.begin, run.length).unbind(0) for run in runs] for pool in pools
    )
    by_layer = [
        list(zip(*views, strict=True))
        for views in zip(zip(*keys, strict=True), zip(*values, strict=True), strict=True)
    ]
    return _SlabGroup(rows * num_slabs, torch.tensor(rows, dtype=torch.long), num_slabs, by_layer)
