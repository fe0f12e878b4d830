from __future__ import annotations

import importlib.util
import threading

import numpy as np
import pytest
import torch

from subnetact import load_executor, measure_profile
from subnetact.cpu.graph_executor import GraphExecutor
from subnetact.load import PACKINGS
from supernet import Checkpoint, CheckpointError, extract


def samples(rng: np.random.Generator, batch_size: int) -> np.ndarray:
    return rng.integers(0, 256, size=(batch_size, 1, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("packing", PACKINGS["cpu"])
def test_a_batch_gives_the_logits_of_the_extracted_subnet(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str
) -> None:
    executor = load_executor(checkpoint, packing=packing)
    assert executor.packing == packing
    inputs = samples(rng, 5)
    x = checkpoint.input.normalise(torch.from_numpy(inputs), 8)
    for subnet in checkpoint.subnets:
        static = extract(
            checkpoint.state,
            checkpoint.definition,
            subnet.arch,
            checkpoint.norm_statistics[subnet.subnet_id],
        )
        with torch.inference_mode():
            expected = static(x).numpy()
        logits = executor.run(subnet.subnet_id, inputs)
        assert logits.shape == (5, 10)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", PACKINGS["cpu"])
def test_two_threads_on_two_subnets_do_not_disturb_each_other(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str
) -> None:
    executor = load_executor(checkpoint, packing=packing)
    inputs = samples(rng, 2)
    expected = {i: executor.run(i, inputs) for i in executor.subnet_ids}
    wrong: list[str] = []

    def run(subnet_id: str) -> None:
        for _ in range(50):
            if not np.array_equal(executor.run(subnet_id, inputs), expected[subnet_id]):
                wrong.append(subnet_id)

    threads = [threading.Thread(target=run, args=(i,)) for i in executor.subnet_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_wrong_inputs_and_subnets_are_refused(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = load_executor(checkpoint)
    subnet_id = executor.subnet_ids[0]
    with pytest.raises(ValueError, match=r"float64 \(1, 1, 8, 8\), expected uint8 \(B, 1, 8, 8\)"):
        executor.run(subnet_id, samples(rng, 1).astype(float))
    with pytest.raises(ValueError, match=r"uint8 \(1, 1, 8, 4\), expected"):
        executor.run(subnet_id, samples(rng, 1)[..., :4])
    with pytest.raises(KeyError, match="not registered"):
        executor.run("d9", samples(rng, 1))
    with pytest.raises(CheckpointError, match="subnet 'd9' is not served by 'tiny'"):
        load_executor(checkpoint, subnet_ids=["d9"])
    with pytest.raises(ValueError, match="packing is 'tight', allowed graph, views on cpu"):
        load_executor(checkpoint, packing="tight")
    with pytest.raises(ValueError, match="threads is 0, allowed 1 or more"):
        load_executor(checkpoint, threads=0)


def test_a_cpu_runs_graphs_by_default_within_its_budget_and_closing_frees_them(
    checkpoint: Checkpoint,
) -> None:
    executor = load_executor(checkpoint)
    assert isinstance(executor, GraphExecutor)
    held = executor.counts()["held_bytes"]
    assert held > 0
    executor.close()
    assert executor.counts()["held_bytes"] == 0
    half = load_executor(checkpoint, budget_bytes=held // 2)
    half.warm_up()
    assert half.counts()["held_bytes"] <= held // 2
    half.close()
    assert half.counts()["held_bytes"] == 0


@pytest.mark.parametrize("absent", ["onnxruntime", "onnx"])
def test_without_onnxruntime_a_cpu_runs_views(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "subnetact.load.find_spec", lambda name: None if name == absent else found(name)
    )
    assert load_executor(checkpoint).packing == "views"


def test_a_measured_profile_says_what_was_measured(checkpoint: Checkpoint) -> None:
    executor = load_executor(checkpoint, max_batch_size=4)
    rounds: list[tuple[int, int]] = []
    profile = measure_profile(
        executor,
        checkpoint,
        batch_sizes=(1, 4),
        repeats=3,
        progress=lambda done, total: rounds.append((done, total)),
    )
    assert profile.checkpoint == checkpoint.fingerprint
    assert profile.threads == 1
    assert profile.packing == executor.packing
    assert set(profile.subnet_ids) == set(checkpoint.subnet_ids)
    assert profile.accuracy(checkpoint.subnet_ids[0]) == 0.5
    for subnet in profile.subnets:
        assert set(subnet.latency_s) == {"p50", "p95", "p99"}
        assert all(
            a <= b for a, b in zip(subnet.latency_s["p50"], subnet.latency_s["p99"], strict=True)
        )
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    profile.check_serves(
        checkpoint=checkpoint.fingerprint,
        device=profile.device,
        threads=1,
        subnet_ids=checkpoint.subnet_ids,
    )
    with pytest.raises(ValueError, match=r"batch sizes are \[1, 8\], allowed 1 to 4"):
        measure_profile(executor, checkpoint, batch_sizes=(1, 8))
