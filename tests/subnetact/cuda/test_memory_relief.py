"""No memory left on a CUDA device, and memory that comes back, with a CPU in its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from subnetact.cuda.cuda_supernet import resident_bytes
from supernet import Checkpoint
from tests.subnetact.cuda.executor_case import (
    difference,
    make_executor,
    oracle,
    samples,
)
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator


def out_of_memory_for(calls: int) -> Callable[[], None]:
    """Raise like a full device for the first calls."""
    left = [calls]

    def raise_while_full() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    return raise_while_full


def test_a_device_without_room_for_slices_streams_them(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    accelerator = LaneAccelerator()
    accelerator.memory = out_of_memory_for(10**9)
    with pytest.warns(RuntimeWarning, match="no memory to pack") as seen:
        executor = make_executor(checkpoint, accelerator)
    assert len(seen) == 1
    accelerator.memory = lambda: None
    executor.warm_up()
    counts = executor.counts()
    assert counts["held_bytes"] == 0
    assert counts["graphs_live"] == 0
    assert counts["out_of_memory"] == sum(len(executor.net.slices(i)) for i in executor.subnet_ids)
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 4)
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4


def test_another_fault_of_a_load_is_no_want_of_memory(checkpoint: Checkpoint) -> None:
    """A device that is broken says so at the start; nothing is streamed in its place."""
    accelerator = LaneAccelerator()

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    accelerator.memory = broken
    with pytest.raises(RuntimeError, match="illegal memory access"):
        make_executor(checkpoint, accelerator)


@pytest.mark.parametrize(("times", "keeps"), [(1, "all"), (2, "own"), (3, "none")])
def test_a_batch_that_finds_no_memory_is_run_with_less_resident(
    checkpoint: Checkpoint,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    keeps: str,
) -> None:
    executor = make_executor(checkpoint, graph_budget_bytes=0)
    executor.warm_up()
    subnet_id, inputs = executor.subnet_ids[1], samples(rng, 3)
    fault, eager = out_of_memory_for(times), executor._eager

    def full(*args: Any) -> torch.Tensor:
        fault()
        return eager(*args)

    monkeypatch.setattr(executor, "_eager", full)
    whole = executor.net.cache.held_bytes
    with pytest.warns(RuntimeWarning, match="the device ran out of memory for") as seen:
        got = executor.run(subnet_id, inputs)
    assert len(seen) == 1
    assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= 2e-4
    own = resident_bytes(executor.net.slices(subnet_id))
    assert executor.net.cache.held_bytes == {"all": whole, "own": own, "none": 0}[keeps]
    assert executor.counts()["out_of_memory"] == times


def test_a_batch_that_never_finds_memory_is_the_callers_to_split_and_costs_no_slot(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(checkpoint, graph_budget_bytes=0)

    def full(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        patch.setattr(executor, "_eager", full)
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError):
                executor.run(executor.subnet_ids[0], samples(rng, 2))
    assert executor.run(executor.subnet_ids[0], samples(rng, 2)).shape == (2, 10)


@pytest.mark.parametrize("budget_bytes", [None, 2**40])
@pytest.mark.parametrize(
    "words",
    ["CUDA out of memory", "FIND was unable to find an engine to execute this computation"],
)
def test_what_a_spike_took_is_back_when_the_device_is_idle(
    checkpoint: Checkpoint,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    budget_bytes: int | None,
) -> None:
    """A neighbour takes all memory for a while; libraries say so in words of their own."""
    accelerator = LaneAccelerator()
    executor = make_executor(
        checkpoint, accelerator, max_batch_size=3, batch_sizes=(1, 2), budget_bytes=budget_bytes
    )
    executor.warm_up()
    before, subnet_id, inputs = executor.counts(), executor.subnet_ids[1], samples(rng, 3)
    expected, eager, is_full = oracle(checkpoint, subnet_id, inputs), executor._eager, [True]

    def while_full(*args: Any) -> torch.Tensor:
        if is_full[0] and executor.net.cache.resident:
            raise RuntimeError(words)
        return eager(*args)

    copy = accelerator.copy

    def copy_while_full(into: torch.Tensor, source: torch.Tensor) -> None:
        is_slice = into.dim() == 1 and accelerator._lane == "compute"
        if is_full[0] and is_slice:
            raise torch.OutOfMemoryError("CUDA out of memory")
        copy(into, source)

    monkeypatch.setattr(executor, "_eager", while_full)
    with pytest.warns(RuntimeWarning, match="graphs, then resident slices are given up"):
        launched = executor.launch(subnet_id, [inputs])  # no graph takes three
    assert difference(executor.result(launched), expected) <= 2e-4
    counts = executor.counts()
    assert (counts["held_bytes"], counts["graphs_live"], counts["out_of_memory"]) == (0, 0, 3)
    monkeypatch.setattr(accelerator, "copy", copy_while_full)
    with pytest.warns(RuntimeWarning, match="no memory to pack"):
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
    assert executor.counts()["held_bytes"] == 0, "the neighbour is still there"
    is_full[0] = False
    assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
    counts = executor.counts()
    for name in ("held_bytes", "graphs_live"):
        assert counts[name] == before[name]
    replays = counts["graph_replays"]
    executor.launch(subnet_id, [inputs[:2]])
    assert executor.counts()["graph_replays"] == replays + 1


def test_another_fault_than_memory_gives_nothing_up(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(checkpoint, max_batch_size=2, batch_sizes=(1,))
    executor.warm_up()
    before = executor.counts()

    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(executor, "_eager", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        executor.run(executor.subnet_ids[0], samples(rng, 2))
    after = executor.counts()
    assert (after["held_bytes"], after["graphs_live"]) == (before["held_bytes"], 3)
