"""Gathered pages give what slabs give, for decodes together and for parts of prompts."""

from __future__ import annotations

import pytest
import torch

from subnetact.decoding.attention import attend, first_visible, plan_slabs
from subnetact.decoding.extents import Run
from subnetact.decoding.gathered_attention import attend_gathered, page_slots, visible_positions

GROUPS, RANKS, D, PAGE = 2, 3, 8, 4


def pools() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(GROUPS, 40 * PAGE, D, generator=generator) for _ in range(2))
    return keys, values


@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("rows", [1, 7])
def test_streams_of_any_length_give_what_their_slabs_give(window: int, rows: int) -> None:
    keys, values = pools()
    generator = torch.Generator().manual_seed(1)
    ends = [17, 9, 30]  # tokens of each stream; the last `rows` of them ask
    pages = torch.randperm(40, generator=generator)[: 3 * 8].view(3, 8)
    query = torch.randn(3 * rows, RANKS, GROUPS, D, generator=generator)
    positions = torch.stack([torch.arange(end - rows, end) for end in ends])
    reads = page_slots(pages, PAGE)
    visible = visible_positions(positions, reads.shape[1], window)
    found = attend_gathered(query, keys, values, reads, visible)
    for i, end in enumerate(ends):
        start = end - rows
        low = first_visible(start, window)
        runs = [Run(int(slot), 1) for slot in reads[i, low:end]]
        views = [(keys.narrow(1, *run), values.narrow(1, *run)) for run in runs]
        own = query[i * rows : (i + 1) * rows]
        slabs = plan_slabs(runs, start, rows, RANKS, window=window)
        expected = attend(own, slabs, views)
        torch.testing.assert_close(found[i * rows : (i + 1) * rows], expected, atol=1e-5, rtol=1e-5)
