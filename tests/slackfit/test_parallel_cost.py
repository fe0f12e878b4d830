"""What several workers change about the cost of an iteration: read, kept, monotone, break-even."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile, ProfileError
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import (
    CostCurve,
    IterationCost,
    IterationCosts,
    IterationWork,
    chunk_pairs,
)
from slackfit.streams.iteration_fill import IterationFill, prompt_alone_s
from slackfit.streams.parallel_cost import ParallelCost, break_even_tokens
from slackfit.streams.spread_rule import most_held
from slackfit.streams.stream_query import StreamQuery

GRIDS = st.builds(
    ParallelCost,
    shards=st.integers(1, 4),
    stages=st.integers(1, 4),
    break_even_tokens=st.integers(0, 3000),
    gather_s=st.floats(0.0, 0.01),
    gather_token_s=st.floats(0.0, 1e-4),
    hop_s=st.floats(0.0, 0.001),
    micro_tokens=st.sampled_from([32, 128]),
)


def a_cost(parallel: ParallelCost | None = None) -> IterationCost:
    return IterationCost(
        subnet_id="e1",
        quality=1.0,
        linear=CostCurve((1, 8, 64, 256), (0.01, 0.02, 0.06, 0.2)),
        head=CostCurve((1, 8), (0.005, 0.01)),
        fixed_s=0.001,
        decode_s=0.0003,
        position_s=3e-6,
        chunk_s=0.0003,
        pair_s=3e-6,
        parallel=parallel,
    )


def test_one_worker_is_no_grid_at_all():
    plain, grid = a_cost(), a_cost(ParallelCost())
    for start, length in ((0, 1), (500, 1), (7, 40), (900, 300)):
        assert grid.attention_s(start, length) == plain.attention_s(start, length)
        work = IterationWork.of([(start, length, True)])
        assert grid.seconds(work) == pytest.approx(plain.seconds(work), rel=1e-12)
    assert prompt_alone_s(grid, 0, 700, 64) == pytest.approx(prompt_alone_s(plain, 0, 700, 64))


@given(grid=GRIDS, start=st.integers(0, 9000), length=st.integers(1, 400))
def test_pairs_are_what_each_row_reads_of_the_fullest_shard(
    grid: ParallelCost, start: int, length: int
):
    rows = [
        most_held(at + 1, grid.shards, grid.break_even_tokens)
        for at in range(start, start + length)
    ]
    found = grid.pairs(start, length)
    assert abs(found - sum(rows)) <= length  # a shard's share of a context is a whole number
    assert found <= chunk_pairs(start, length)


@given(grid=GRIDS, start=st.integers(0, 9000))
def test_longer_chunks_and_contexts_never_take_less(grid: ParallelCost, start: int):
    fill = IterationFill(a_cost(grid), IterationWork(4, 4, 4, 2000))
    for at in (start, start + 500):
        times = [fill.seconds_with(at, n, False) for n in range(2, 600, 7)]
        assert all(a <= b + 1e-12 for a, b in pairwise(times))
    assert fill.seconds_with(start, 64, True) <= fill.seconds_with(start + 500, 64, True) + 1e-12


def test_two_shards_halve_what_a_long_context_reads_and_pay_for_the_gathers():
    grid = ParallelCost(shards=2, break_even_tokens=2000, gather_s=0.004)
    costs = IterationCosts(quality_kind="made up", rungs=(a_cost(),))
    spread = costs.on_workers(grid)
    for cached, reads, is_spread in (
        (999, 1000, 0),
        (1999, 2000, 0),
        (2999, 2000, 1),
        (9999, 5000, 1),
    ):
        work = spread.decode_work([cached])
        assert work == IterationWork(1, 1, 1, reads, spread=is_spread)
        saved = (cached + 1 - reads) * 3e-6 - 0.004 * is_spread
        assert spread.seconds("e1", work) == pytest.approx(
            costs.seconds("e1", costs.decode_work([cached])) - saved
        )


def test_shards_that_share_linear_layers_out_take_their_share_of_the_time():
    """Where a stream lies on several; an iteration of one shard takes what it did."""
    shared = ParallelCost(shards=2, break_even_tokens=2000, gather_s=0.004, linear_share=0.6)
    alone = replace(shared, linear_share=1.0)
    for cached, saved in ((1000, 0.0), (9999, 0.4)):
        start = cached, 1, True
        times = []
        for grid in (alone, shared):
            fill = IterationFill(a_cost(grid))
            fill.add(*start)
            times.append(fill.seconds)
        assert times[0] - times[1] == pytest.approx(saved * 0.01)  # of one token's linear layers


def test_a_pipeline_of_eight_micro_batches_is_1_78_times_as_fast():
    """n / (n / 2 + 1 / 2): the ideal of two stages, filled and drained."""
    cost = IterationCost(
        subnet_id="e1",
        quality=1.0,
        linear=CostCurve((1, 128), (1e-3, 0.128)),
        head=CostCurve((1,), (0.0,)),
    )
    piped = IterationCost(
        subnet_id="e1",
        quality=1.0,
        linear=cost.linear,
        head=cost.head,
        parallel=ParallelCost(stages=2, micro_tokens=128),
    )
    work = IterationWork(1024, 0, 0, 0, 1, 0)
    assert cost.seconds(work) / piped.seconds(work) == pytest.approx(8 / 4.5)
    assert piped.seconds(IterationWork(128)) == cost.seconds(IterationWork(128))


def test_a_profile_carries_the_grid(smollm2: LatencyProfile):
    grid = ParallelCost(
        shards=2,
        break_even_tokens=3000,
        gather_s=0.006,
        gather_token_s=1e-4,
        micro_tokens=128,
        linear_share=0.75,
    )
    written = IterationCosts.of(smollm2).on_workers(grid).in_profile(smollm2)
    read = IterationCosts.of(LatencyProfile.from_json(written.to_json()))
    assert read.parallel is not None
    for name in ("shards", "stages", "break_even_tokens", "micro_tokens", "linear_share"):
        assert getattr(read.parallel, name) == getattr(grid, name)
    assert read.parallel.gather_s == pytest.approx(0.006)
    assert read.scaled(2.0).parallel == read.parallel.scaled(2.0)
    assert IterationCosts.of(smollm2).parallel is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "expected a JSON object, got list"),
        ({"shards": 0}, "shards is 0, allowed 1 or more"),
        ({"gather_ms": -1}, "gather_s is -0.001, allowed finite"),
        ({"linear_share": 0}, "linear_share is 0.0, allowed above 0 up to 1"),
        ({"break_even_tokens": -1}, "break_even_tokens is -1, allowed 0 or more"),
        ({"shard": 2}, "unknown 'shard', allowed break_even_tokens"),
        ({"shards": "two"}, "malformed"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(given: object, says: str):
    with pytest.raises(ProfileError, match=says):
        ParallelCost.from_json(given)


def test_the_break_even_is_where_the_lines_cross():
    alone = [(n, 0.01 + 2e-6 * n) for n in (500, 1000, 4000)]
    spread = [(n, 0.016 + 1e-6 * n) for n in (500, 1000, 4000)]
    assert break_even_tokens(alone, spread) == 6000
    assert break_even_tokens(spread, alone) is None
    assert break_even_tokens(alone, [(n, s - 0.007) for n, s in spread]) == 0


def test_the_policy_takes_larger_chunks_where_shards_pay():
    """Beyond the break-even an iteration has room for more, before the reader's next output."""
    steps: dict[tuple[int, int], int] = {}
    for shards, break_even in ((1, 0), (4, 2000), (4, 10**6)):
        grid = ParallelCost(shards=shards, break_even_tokens=break_even, gather_s=0.001)
        costs = IterationCosts(quality_kind="made up", rungs=(a_cost(),)).on_workers(grid)
        scheduler = StreamScheduler(costs, create_stream_policy("lars", costs), kv_tokens=200_000)
        scheduler.submit(StreamQuery(0, 0.0, 1, 10**5, 0.1, 0.15), 0.0)
        scheduler.submit(StreamQuery(1, 0.0, 20_000, 1, math.inf, 1.0), 0.0)
        now_s, taken = 0.0, 0
        while len(scheduler) == 2:
            step = scheduler.poll(now_s).step
            assert step is not None
            taken += 1
            now_s += step.expected_s
            scheduler.complete(step.step_id, now_s)
        steps[shards, break_even] = taken
    assert steps[4, 2000] < 0.5 * steps[1, 0]
    assert steps[4, 10**6] == steps[1, 0]  # beyond all contexts: it stays on one
