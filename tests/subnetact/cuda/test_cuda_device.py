"""The CUDA path on a CUDA device: held equal to the extracted subnet. `make test-gpu`.

All of it is in this file, which imports nothing that an image for training may lack.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from subnetact import load_executor, measure_profile
from subnetact.cache import SLICE_PACKINGS
from subnetact.cuda.cuda_accelerator import CudaAccelerator
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor
from subnetact.decoding.ragged_batch import Chunk
from supernet import Checkpoint, extract

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    # Libraries warn of plans that failed and of settings that are old; what we warn of is an error.
    pytest.mark.filterwarnings("default", "error::RuntimeWarning"),
]

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}  # of the largest logit


def samples(batch_size: int) -> np.ndarray:
    rng = np.random.default_rng(batch_size)
    return rng.integers(0, 256, size=(batch_size, 1, 8, 8), dtype=np.uint8)


def oracle(checkpoint: Checkpoint, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
    arch = checkpoint.subnet(subnet_id).arch
    static = extract(
        checkpoint.state, checkpoint.definition, arch, checkpoint.norm_statistics[subnet_id]
    )
    with torch.inference_mode():
        return static(checkpoint.input.normalise(torch.from_numpy(inputs), arch.resolution)).numpy()


def close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    return float(np.abs(got - expected).max() / np.abs(expected).max()) <= tolerance


@pytest.mark.parametrize("packing", SLICE_PACKINGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("share", [None, 0.5, 0.0])
def test_graphs_and_streams_equal_the_extracted_subnet(
    checkpoint: Checkpoint, packing: str, dtype: str, share: float | None
) -> None:
    whole = load_executor(
        checkpoint, device="cuda", packing=packing, dtype=dtype, budget_bytes=2**40
    )
    assert isinstance(whole, CudaExecutor)
    counts = whole.counts()
    budget = None
    if share is not None:
        budget = counts["fixed_bytes"] + int(share * counts["held_bytes"])
    executor = load_executor(
        checkpoint, device="cuda", packing=packing, dtype=dtype, budget_bytes=budget
    )
    assert isinstance(executor, CudaExecutor)
    executor.warm_up()
    for subnet_id in executor.subnet_ids:
        for size in (16, 3, 1, 7):
            got = executor.run(subnet_id, samples(size))
            assert close(got, oracle(checkpoint, subnet_id, samples(size)), TOLERANCE[dtype])
    counts = executor.counts()
    assert (counts["graph_replays"] > 0) == (share != 0.0)
    if budget is not None:
        assert counts["held_bytes"] + counts["fixed_bytes"] <= budget
    executor.close()
    assert executor.counts()["held_bytes"] == 0


def test_graphs_outlive_the_retirement_of_their_siblings(checkpoint: Checkpoint) -> None:
    executor = load_executor(checkpoint, device="cuda")
    assert isinstance(executor, CudaExecutor)
    executor.warm_up()
    kept = executor.subnet_ids[-1]
    executor.make_resident(executor.net.slices(kept))
    held = torch.cuda.memory_allocated()
    for size in (16, 5, 1):
        got = executor.run(kept, samples(size))
        assert close(got, oracle(checkpoint, kept, samples(size)), TOLERANCE["bfloat16"])
    assert torch.cuda.memory_allocated() == held, "a replay allocates nothing"
    assert executor.counts()["eager_batches"] == 0
    executor.close()
    executor.make_resident(s for i in executor.subnet_ids for s in executor.net.slices(i))
    executor.warm_up()
    got = executor.run(kept, samples(4))
    assert close(got, oracle(checkpoint, kept, samples(4)), TOLERANCE["bfloat16"])


def test_a_capture_that_failed_leaves_the_next_one_alone() -> None:
    accelerator = CudaAccelerator()
    x, total = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")

    def wait() -> None:
        x.sum().item()

    def add() -> None:
        total.add_(x * 1.0)

    with pytest.raises(RuntimeError):
        accelerator.capture(wait)  # for the device: not in a graph
    accelerator.renew_pool()
    graph, _ = accelerator.capture(add)  # and replays it once, and calls it once
    graph.replay()
    torch.cuda.synchronize()
    assert total.tolist() == [3.0] * 4


def test_a_profile_is_measured(checkpoint: Checkpoint) -> None:
    executor = load_executor(checkpoint, device="cuda", max_batch_size=4, batch_sizes=(1, 4))
    profile = measure_profile(executor, checkpoint, batch_sizes=(1, 4), repeats=3)
    assert profile.device == torch.cuda.get_device_name()
    assert profile.dtype == "bfloat16"


def test_graphs_are_captured_between_batches_of_what_was_launched(checkpoint: Checkpoint) -> None:
    executor = load_executor(checkpoint, device="cuda", max_batch_size=4, batch_sizes=(1, 2, 4))
    assert isinstance(executor, CudaExecutor)
    profile = measure_profile(executor, checkpoint, batch_sizes=(1, 2, 4), repeats=8)
    executor.close()
    executor = load_executor(checkpoint, device="cuda", max_batch_size=4, batch_sizes=(1, 2, 4))
    assert isinstance(executor, CudaExecutor)
    assert executor.follow(profile)
    executor.warm_up()
    assert executor.counts()["graphs_live"] == 2
    hot = executor.background
    assert hot is not None
    ran: list[str] = []
    for subnet_id in executor.subnet_ids:
        for _ in range(5):
            for _ in range(400):
                launched = executor.launch(subnet_id, [samples(1)])
                ran.append(launched.form)
                got = executor.result(launched)
            assert close(got, oracle(checkpoint, subnet_id, samples(1)), TOLERANCE["bfloat16"])
            while (errand := hot.next_errand()) is not None:
                print(f"{subnet_id}: {errand}")
                hot.run_errand()
    assert "graph" in ran
    assert executor.counts()["graphs_live"] > 2, "a replay saves launches"
    executor.graphs.drop()
    for subnet_id in executor.subnet_ids:
        got = executor.run(subnet_id, samples(3))
        assert close(got, oracle(checkpoint, subnet_id, samples(3)), TOLERANCE["bfloat16"])


def test_a_decoder_gives_the_logits_of_the_extracted_subnet(elastic_decoder: Checkpoint) -> None:
    executor = CudaStreamExecutor(elastic_decoder, CudaAccelerator(), capacity_tokens=256)
    executor.warm_up()
    assert not executor.graph_status.refusals
    ids = tuple(range(3, 30))
    for subnet in elastic_decoder.subnets:
        executor.run(subnet.subnet_id, [Chunk("a", ids[:-1], False), Chunk("b", ids[:9])])
        logits = executor.run(subnet.subnet_id, [Chunk("b", (5,)), Chunk("a", ids[-1:])])[1]
        net = extract(elastic_decoder.state, elastic_decoder.definition, subnet.arch)
        with torch.inference_mode():
            expected = net(torch.tensor([ids]))[0, -1]
        scale = expected.abs().max().item()
        torch.testing.assert_close(logits, expected, atol=1e-4 * scale, rtol=0)
        executor.release("a")
        executor.release("b")
    assert executor.graph_status.replays == len(elastic_decoder.subnets)
    executor.close()
