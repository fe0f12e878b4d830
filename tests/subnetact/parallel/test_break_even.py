"""What a grid costs is measured with its own iterations, and goes into the profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts
from slackfit.streams.parallel_cost import ParallelCost
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.parallel.break_even import NOWHERE, measure_grid
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from subnetact.profiling.grid_profile import with_grid
from supernet import Checkpoint, define_supernet
from supernet.checkpoint import save_checkpoint


def a_profile(decoder: Checkpoint) -> LatencyProfile:
    ids = decoder.subnet_ids
    bare = LatencyProfile(
        name="made up",
        device="none",
        dtype="float32",
        created="2026-11-30",
        source="made up",
        batch_sizes=(1,),
        subnets=tuple(
            SubnetProfile(
                subnet_id=i, accuracy=decoder.subnet(i).accuracy, macs=0, latency_s={"p50": (0.1,)}
            )
            for i in ids
        ),
    )
    curve = CostCurve((1,), (0.001,))
    rungs = tuple(
        IterationCost(subnet_id=i, quality=decoder.subnet(i).accuracy, linear=curve, head=curve)
        for i in ids
    )
    return IterationCosts(quality_kind="top1_agreement", rungs=rungs).in_profile(bare)


def test_the_break_even_is_printed_and_stored_in_the_profile(
    tmp_path: Path, decoder: Checkpoint
) -> None:
    save_checkpoint(decoder, tmp_path / "decoder")
    told: list[str] = []
    measured = with_grid(
        a_profile(decoder), decoder, tmp_path / "decoder", WorkerGrid(shards=2),
        threads=1, packing=None, repeats=2, tell=told.append,
    )  # fmt: skip
    assert told[-1].startswith("2 shards pay")
    measured.save(tmp_path / "profile.json")
    parallel = IterationCosts.of(LatencyProfile.load(tmp_path / "profile.json")).parallel
    assert parallel is not None
    assert (parallel.shards, parallel.stages) == (2, 1)


def test_streams_are_spread_from_the_break_even_of_the_profile(decoder: Checkpoint) -> None:
    costs = IterationCosts.of(a_profile(decoder))
    with pytest.raises(ValueError, match="these costs are of one worker"):
        ParallelExecutor.for_costs(decoder, costs)
    costs = costs.on_workers(ParallelCost(shards=2, break_even_tokens=16))
    executor = ParallelExecutor.for_costs(decoder, costs, block_tokens=4, extent_tokens=4)
    try:
        width = costs.subnet_ids[0]
        for tokens, held in ((16, [16, 0]), (1, [16, 1]), (20, [20, 17])):
            executor.run(width, [Chunk("a", (1,) * tokens)])
            assert executor.table.held("a") == held
    finally:
        executor.close()


def test_a_grid_is_measured_by_its_own_iterations(
    make_decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that is all there is: shards pay from some context on, and the policy gets it.

    What is measured as spread lies on all shards, also behind the short context of the gathers.
    """
    definition = define_supernet("decoder_tiny", max_positions=16_000, num_heads=8, head_dim=32)
    checkpoint: Checkpoint = make_decoder(definition)
    executor = ParallelExecutor(checkpoint, WorkerGrid(shards=2), capacity_tokens=20_000)
    run = executor.run
    held: dict[object, list[list[int]]] = {"alone": [], "spread": []}

    def noted(subnet_id, chunks):
        logits = run(subnet_id, chunks)
        held[chunks[0].sequence].append(executor.table.held(chunks[0].sequence))
        return logits

    monkeypatch.setattr(executor, "run", noted)
    try:
        told: list[str] = []
        measured = measure_grid(
            executor,
            StreamExecutor(checkpoint, capacity_tokens=256),
            contexts=(512, 12_000),
            repeats=3,
            tell=told.append,
        )
        assert executor.table.sequences == ()
        assert executor.table.spread_from == 0
    finally:
        executor.close()
    cost = measured.cost
    assert [context for context, _ in measured.alone_s] == [512, 12_000]
    assert measured.alone_s[1][1] > measured.alone_s[0][1]
    assert cost.gather_s >= 0.0  # beside other work the best of a few may be equal
    assert 0.5 <= cost.linear_share <= 1.0
    assert (cost.shards, cost.stages) == (2, 1)
    assert 0 <= cost.break_even_tokens <= NOWHERE
    assert len(told) == 2
    assert all(map(all, held["spread"]))
    assert not any(map(all, held["alone"]))
    assert min(map(sum, held["spread"])) < 400
    with pytest.raises(ValueError, match="allowed two or more of 1 to 15988"):
        measure_grid(
            executor, StreamExecutor(checkpoint, capacity_tokens=256), contexts=(1,), repeats=3
        )
