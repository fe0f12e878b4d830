"""Costs of iterations: the fit finds what made the times, and the profile says what it is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts, IterationWork
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.profiling import iteration_profiler
from subnetact.profiling.iteration_fit import (
    HEAD_ROWS,
    LINEAR_TOKENS,
    MeasuredIteration,
    fit_iterations,
    relative_errors,
)
from subnetact.profiling.iteration_profiler import grid, measure_iterations
from supernet import Checkpoint

DECODES = (1, 2, 4, 8, 16)


def true_cost(subnet_id: str, factor: float) -> IterationCost:
    linear = [
        factor * (2e-3 + 1e-4 * n + (5e-5 * (n - 32) if n > 32 else 0)) for n in LINEAR_TOKENS
    ]
    return IterationCost(
        subnet_id=subnet_id,
        quality=factor,
        linear=CostCurve(LINEAR_TOKENS, tuple(linear)),
        head=CostCurve(HEAD_ROWS, tuple(1e-3 + 2e-4 * n for n in HEAD_ROWS)),
        decode_s=1e-4,
        position_s=4e-7,
        chunk_s=2e-4,
        pair_s=3e-8,
    )


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_fit_finds_the_costs_that_made_the_times(noise: float) -> None:
    costs = {name: true_cost(name, factor) for name, factor in (("half", 0.6), ("full", 1.0))}
    rng = np.random.default_rng(0)
    fitted_kinds, judged_kinds = grid(DECODES, 8192)

    def measured(kinds) -> list[MeasuredIteration]:
        return [
            MeasuredIteration(i, work, cost.seconds(work) * float(np.exp(rng.normal(0, noise))))
            for i, cost in costs.items()
            for work in map(IterationWork.of, kinds)
        ]

    fitted = fit_iterations(measured(fitted_kinds), {"half": 0.6, "full": 1.0})
    errors = relative_errors(fitted, measured(judged_kinds))
    assert np.mean(errors) < 0.02 + noise
    assert not set(judged_kinds) & set(fitted_kinds)
    big = IterationWork.of([(100, 1, True)] * 8 + [(50, 100, False)])
    ratio = fitted[0].seconds(big) / fitted[1].seconds(big)
    assert ratio == pytest.approx(costs["half"].seconds(big) / costs["full"].seconds(big), rel=0.06)


def test_attention_costs_a_shallower_subnet_its_share() -> None:
    """Two subnets with the same linear layers, one of them with half of the blocks."""
    deep = true_cost("deep", 1.0)
    attention = ("decode_s", "position_s", "chunk_s", "pair_s")
    halves = {name: getattr(deep, name) / 2 for name in attention}
    costs = {"deep": deep, "flat": replace(deep, subnet_id="flat", **halves)}
    kinds, judged = grid(DECODES, 8192)

    def measured(kinds) -> list[MeasuredIteration]:
        return [
            MeasuredIteration(name, work, cost.seconds(work))
            for name, cost in costs.items()
            for work in map(IterationWork.of, kinds)
        ]

    qualities = {"deep": 1.0, "flat": 0.9}
    depths = {"deep": 1.0, "flat": 0.5}
    fitted = {each.subnet_id: each for each in fit_iterations(measured(kinds), qualities, depths)}
    assert max(relative_errors(tuple(fitted.values()), measured(judged))) < 0.02
    assert fitted["flat"].position_s == pytest.approx(fitted["deep"].position_s / 2)
    plain = fit_iterations(measured(kinds), qualities)
    assert max(relative_errors(plain, measured(judged))) > 0.03


def test_a_subnet_that_was_not_measured_is_told() -> None:
    with pytest.raises(ValueError, match="no iteration was measured on full"):
        fit_iterations([], {"full": 1.0})


def test_a_profile_of_a_decoder_tells_its_iterations(
    decoder: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Times are those of a known cost: beside other work a real clock would be noise."""
    stream_executor = StreamExecutor(decoder, capacity_tokens=2560)
    costs = {
        subnet.subnet_id: true_cost(subnet.subnet_id, subnet.accuracy) for subnet in decoder.subnets
    }

    def run(executor, subnet_id: str, kind) -> float:
        return costs[subnet_id].seconds(IterationWork.of(kind))

    real = iteration_profiler._run
    assert real(stream_executor, stream_executor.subnet_ids[0], ((8, 1, True), (0, 5, False))) > 0
    assert stream_executor.cache.table.sequences == ()
    monkeypatch.setattr(iteration_profiler, "_run", run)
    profile = measure_iterations(stream_executor, decoder, decodes=(1, 2, 4), repeats=1)
    profile.save(tmp_path / "profile.json")
    read = IterationCosts.of(LatencyProfile.load(tmp_path / "profile.json"))
    assert read.quality_kind == "top1_agreement"
    assert read.subnet_ids == decoder.subnet_ids
    assert read.extra["held_out_error"]["mean"] < 0.05
    monkeypatch.setattr(
        iteration_profiler, "_run", lambda *_: float(np.random.default_rng().exponential(1e-3))
    )
    with pytest.raises(RuntimeError, match="measure again on a machine with nothing else to do"):
        measure_iterations(stream_executor, decoder, decodes=(1, 2, 4), repeats=1)
    with pytest.raises(ValueError, match="streams need"):
        measure_iterations(stream_executor, decoder, decodes=(64,), repeats=1)


def test_contexts_are_read_from_memory_that_was_written(
    decoder: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unwritten cache is one page of zeros, however long: reading it would cost next to none."""
    executor = StreamExecutor(decoder, capacity_tokens=2560)
    table, run = executor.cache.table, executor.run
    read = 0

    def checked(subnet_id: str, chunks):
        nonlocal read
        for chunk in chunks:
            cached = table.length(chunk.sequence)
            for begin, length in table.slots(chunk.sequence, 0, cached) if cached else ():
                for pool in (executor.cache.keys, executor.cache.values):
                    assert pool.narrow(2, begin, length).abs().sum(-1).gt(0).all()
                read += length
        return run(subnet_id, chunks)

    monkeypatch.setattr(executor, "run", checked)
    measure_iterations(executor, decoder, decodes=(1, 2), repeats=1, max_error=float("inf"))
    assert read > 0
    assert table.sequences == ()
