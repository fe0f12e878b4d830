"""Captures that find no room, or fail: their pairs run eagerly, others are captured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from subnetact.cuda.accelerator import Replay
from supernet import Checkpoint
from tests.subnetact.cuda.executor_case import (
    difference,
    make_executor,
    oracle,
    samples,
)
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator


def test_graphs_over_their_budget_or_out_of_memory_run_eagerly(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    accelerator = LaneAccelerator()
    accelerator.graph_bytes = 3 * 2**20
    executor = make_executor(
        checkpoint, accelerator, max_batch_size=4, graph_budget_bytes=8 * 2**20
    )
    executor.warm_up()
    counts = executor.counts()
    assert counts["graphs_live"] == 2
    assert counts["graph_bytes"] <= 8 * 2**20
    assert counts["graphs_refused"] == 7
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 4)
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4


class SpoiltPoolAccelerator(LaneAccelerator):
    """A capture that is invalidated leaves its pool recording, as CUDA's allocator does."""

    def __init__(self, invalid: int) -> None:
        super().__init__()
        self._left = invalid
        self._is_recording = False

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        if self._is_recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if self._left:
            self._left -= 1
            self._is_recording = True
            raise RuntimeError("CUDA error: operation failed due to a previous error in capture")
        return super().capture(call)

    def renew_pool(self) -> None:
        self._is_recording = False


def test_a_capture_that_failed_costs_its_own_graph_only(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, SpoiltPoolAccelerator(invalid=2), max_batch_size=4)
    with pytest.warns(RuntimeWarning, match="no CUDA graph for") as seen:
        executor.warm_up()
    assert len(seen) == 1
    status = executor.graphs.status
    assert (status.live, set(status.refusals.values())) == (7, {"capture failed"})
    inputs = samples(rng, 4)
    for subnet_id in executor.subnet_ids:
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
