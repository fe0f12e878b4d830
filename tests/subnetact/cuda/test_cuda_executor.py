"""The CUDA path with a CPU in place of the device: its results, its batches, the ways in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from subnetact import load_executor, measure_profile
from subnetact.cuda.cuda_supernet import CudaSupernet
from supernet import Checkpoint
from tests.subnetact.cuda.executor_case import (
    BF16_TOLERANCE,
    TOLERANCE,
    difference,
    make_executor,
    oracle,
    samples,
)


@pytest.mark.parametrize("packing", TOLERANCE)
def test_graph_eager_and_extracted_give_the_same(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str
) -> None:
    executor = make_executor(checkpoint, packing=packing, max_batch_size=8)
    eager = make_executor(checkpoint, packing=packing, max_batch_size=8, graph_budget_bytes=0)
    executor.warm_up()
    eager.warm_up()
    replays = executor.counts()["graph_replays"]
    assert replays == 12, "the warm-up replays what it captured"
    for subnet_id in executor.subnet_ids:
        for size in (8, 3, 1, 5):  # 3 and 5 are padded, beside what an earlier batch left there
            inputs = samples(rng, size)
            got = executor.run(subnet_id, inputs)
            replays += 1
            assert got.dtype == np.float32
            assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= TOLERANCE[packing]
            assert difference(got, eager.run(subnet_id, inputs)) <= 1e-5
    assert executor.counts()["graph_replays"] == replays
    assert executor.counts()["eager_batches"] == 0
    assert eager.counts()["graph_replays"] == 0
    why = "none fused: a CPU in place of the device"
    assert executor.details == f"12 CUDA graphs, 0 pairs eager; {why}"


def test_what_lies_in_the_padding_rows_changes_nothing(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=8, batch_sizes=(8,))
    executor.warm_up()
    subnet_id = executor.subnet_ids[-1]
    inputs = samples(rng, 3)
    executor.run(subnet_id, np.zeros((8, 1, 8, 8), dtype=np.uint8))
    first = executor.run(subnet_id, inputs)
    executor.run(subnet_id, np.full((8, 1, 8, 8), 255, dtype=np.uint8))
    assert np.array_equal(executor.run(subnet_id, inputs), first)
    assert first.shape == (3, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packing", TOLERANCE)
def test_sixteen_bits_stay_near_float32(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str, dtype: torch.dtype
) -> None:
    executor = make_executor(checkpoint, packing=packing, dtype=dtype, max_batch_size=4)
    executor.warm_up()
    assert executor.dtype == str(dtype).removeprefix("torch.")
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 4)
        got = executor.run(subnet_id, inputs)
        assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= BF16_TOLERANCE


def test_two_batches_are_under_way_and_a_third_waits_for_a_result(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=4)
    executor.warm_up()
    executor.ring._patience_s = 0.01
    small, *_, large = executor.subnet_ids
    first, second = samples(rng, 4), samples(rng, 2)
    one, two = executor.launch(small, [first]), executor.launch(large, [second])
    with pytest.raises(
        RuntimeError, match=r"no room for a batch became free in 0\.01 s: take the resul"
    ):
        executor.launch(small, [first])
    assert difference(executor.result(two), oracle(checkpoint, large, second)) <= 2e-4
    assert difference(executor.result(one), oracle(checkpoint, small, first)) <= 2e-4
    assert executor.run(small, first).shape == (4, 10)


@pytest.mark.parametrize("graph_budget_bytes", [None, 0])
def test_a_batch_launched_before_the_last_result_changes_neither(
    checkpoint: Checkpoint, rng: np.random.Generator, graph_budget_bytes: int | None
) -> None:
    """As a server does under load; copies come as late as they may, rooms are taken in turn."""
    executor = make_executor(checkpoint, max_batch_size=4, graph_budget_bytes=graph_budget_bytes)
    executor.warm_up()
    assert executor.num_under_way == 2
    batches = [(executor.subnet_ids[n % 3], samples(rng, 1 + n % 4)) for n in range(8)]
    under_way = [executor.launch(batches[0][0], [batches[0][1]])]
    for n, (subnet_id, inputs) in enumerate(batches):
        if n + 1 < len(batches):
            ahead_id, ahead = batches[n + 1]
            under_way.append(executor.launch(ahead_id, [ahead[:1], ahead[1:]]))
        got = executor.result(under_way.pop(0))
        assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= 2e-4


def test_wrong_requests_are_refused_and_cost_no_slot(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=4)
    for _ in range(3):
        with pytest.raises(KeyError, match="not registered"):
            executor.run("d9", samples(rng, 1))
        with pytest.raises(ValueError, match="the batch has 5 samples, allowed 1 to 4"):
            executor.run(executor.subnet_ids[0], samples(rng, 5))
        with pytest.raises(ValueError, match="expected uint8"):
            executor.run(executor.subnet_ids[0], samples(rng, 1).astype(float))
    assert executor.run(executor.subnet_ids[0], samples(rng, 4)).shape == (4, 10)
    with pytest.raises(ValueError, match="packing is 'views', allowed folded, shared"):
        make_executor(checkpoint, packing="views")
    with pytest.raises(ValueError, match="dtype is float64, allowed bfloat16, float16, float32"):
        make_executor(checkpoint, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"batch sizes are \[1, 8\], allowed 1 to max_batch_size"):
        make_executor(checkpoint, max_batch_size=4, batch_sizes=(1, 8))
    with pytest.raises(ValueError, match="budget_bytes is -1"):
        make_executor(checkpoint, budget_bytes=-1)


def test_float32_is_never_tf32_whatever_the_process_allows(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, object]] = []
    run = CudaSupernet.run

    def watched(net: CudaSupernet, *args: Any) -> torch.Tensor:
        backends = torch.backends
        seen.append((backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32))
        return run(net, *args)

    monkeypatch.setattr(CudaSupernet, "run", watched)
    executor = make_executor(checkpoint, max_batch_size=2, batch_sizes=(1,))
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    executor.warm_up()
    executor.run(executor.subnet_ids[0], samples(rng, 2))
    assert len(seen) > 6
    assert set(seen) == {(False, False)}
    assert torch.backends.cudnn.allow_tf32


# --- the ways in ---------------------------------------------------------------------------------


def test_a_profile_says_dtype_packing_and_graphs(checkpoint: Checkpoint) -> None:
    executor = make_executor(
        checkpoint, dtype=torch.bfloat16, max_batch_size=2, packing="shared", batch_sizes=(1, 2)
    )
    profile = measure_profile(executor, checkpoint, batch_sizes=(1, 2), repeats=2)
    assert (profile.dtype, profile.packing, profile.threads) == ("bfloat16", "shared", None)
    assert profile.source.endswith(
        "; 6 CUDA graphs, 0 pairs eager; none fused: a CPU in place of the device"
    )
    assert all(len(subnet.latency_s["steady"]) == 2 for subnet in profile.subnets)


def test_a_dtype_that_is_not_computed_there_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="dtype is 'bfloat16', allowed float32 on cpu with packi"):
        load_executor(checkpoint, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype is 'int8', allowed bfloat16, float16, float32 on"):
        load_executor(checkpoint, device="cuda", dtype="int8")
    with pytest.raises(ValueError, match="dtype is 'float16', allowed float32 on cuda with packin"):
        load_executor(checkpoint, device="cuda", packing="views", dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("packing", [None, "shared", "views"])
def test_cuda_where_there_is_none_is_refused(checkpoint: Checkpoint, packing: str | None) -> None:
    with pytest.raises(ValueError, match="no CUDA device is available; use cpu"):
        load_executor(checkpoint, device="cuda", packing=packing)
