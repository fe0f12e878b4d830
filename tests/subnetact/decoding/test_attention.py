"""Attention over slabs equals attention over the whole, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from subnetact.decoding import attention
from subnetact.decoding.attention import attend, first_visible, plan_slabs
from subnetact.decoding.extents import Run
from supernet.layers.causal import CausalCore

GROUPS, RANKS, D, N = 2, 3, 8, 23


@pytest.fixture(params=["merged", "joined"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operator that gives log-sum-exps, and by a copy where there is none."""
    if request.param == "joined":
        monkeypatch.setattr(attention, "has_log_sum_exp", lambda: False)
    elif not attention.has_log_sum_exp():
        pytest.skip("this build of torch gives no log-sum-exp")


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("least_pairs", [1, 2**17])
@pytest.mark.parametrize("cuts", [(), (7,), (4, 5, 17), tuple(range(1, N))])
@pytest.mark.parametrize(("start", "stop"), [(0, N), (9, 10), (N - 1, N), (3, 19), (7, 12)])
@pytest.mark.parametrize("window", [0, 1, 4, 9, 40])
def test_slabs_of_any_size_give_what_the_whole_gives(
    cuts: tuple[int, ...],
    start: int,
    stop: int,
    window: int,
    least_pairs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the run that the chunk begins in is cut there."""
    monkeypatch.setattr(attention, "_LEAST_PAIRS", least_pairs)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(N, RANKS, GROUPS, D, generator=generator)
    keys, values = (torch.randn(GROUPS, 2 * N, D, generator=generator) for _ in range(2))
    # Slabs lie in the cache in another order than their positions.
    low = first_visible(start, window)
    edges = [low, *(cut for cut in cuts if low < cut < stop), stop]
    sizes = [b - a for a, b in pairwise(edges)]
    runs, end = [], 2 * N
    for size in sizes:
        end -= size
        runs.append(Run(end, size))
    slots = [slot for run in runs for slot in range(run.begin, run.begin + run.length)]
    slots = list(range(low)) + slots  # whatever lies before what is visible
    slabs = plan_slabs(runs, start, stop - start, RANKS, window=window)
    views = [(keys.narrow(1, *run), values.narrow(1, *run)) for run, *_ in slabs]
    mixed = attend(query[start:stop], slabs, views)
    grouped = query[:stop].permute(2, 1, 0, 3).flatten(0, 1)[None]  # (1, groups * ranks, N, D)
    whole = CausalCore(window)(grouped, keys[None, :, slots], values[None, :, slots])
    expected = whole[0].unflatten(0, (GROUPS, RANKS)).permute(2, 1, 0, 3)[start:]
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_is_of_the_chunk_alone_and_not_of_all_before_it() -> None:
    """A mask over a context of 64 K would be 200 MB for 256 rows of 3 heads."""
    if not attention.has_log_sum_exp():
        pytest.skip("this build of torch gives no log-sum-exp")
    past, chunk = plan_slabs([Run(64, 65_536 + 256)], 65_536, 256, RANKS)
    assert past == (Run(64, 65_536), 0, 256, None)
    assert chunk.run == Run(64 + 65_536, 256)
    assert chunk.mask is not None
    assert chunk.mask.shape == (RANKS * 256, 256)
    (decode,) = plan_slabs([Run(0, 2**20)], 2**20 - 1, 1, RANKS)
    assert decode == (Run(0, 2**20), 0, 1, None)


def test_an_operator_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(query, keys, values, *_args, **_named):
        return torch.zeros_like(query), torch.zeros(query.shape[:-1])

    monkeypatch.setattr(attention, "flash_operator", lambda: wrong)
    assert not attention.has_log_sum_exp.__wrapped__()
    monkeypatch.setattr(attention, "flash_operator", lambda: torch.ops.aten.not_there)
    assert not attention.has_log_sum_exp.__wrapped__()
