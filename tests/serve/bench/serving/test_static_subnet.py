"""The peer of the serving benchmark: the same answers as ours, tuned while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from serve.bench.serving.static_subnet import StaticSubnet
from serve.client.dial import dial
from serve.config import parse_config
from subnetact import load_executor
from supernet import load_checkpoint
from traces.open_loop.target import ReplayReply, ReplayRequest


def test_the_eager_subnet_answers_like_our_executor(
    checkpoint_folder: Path, rng: np.random.Generator
) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    executor = load_executor(checkpoint)
    inputs = rng.integers(0, 256, size=(3, *checkpoint.input.shape), dtype=np.uint8)
    for subnet_id in checkpoint.subnet_ids:
        plain = StaticSubnet(checkpoint, subnet_id, threads=1).run(inputs)
        np.testing.assert_allclose(
            plain, executor.run(subnet_id, inputs), rtol=1e-3, atol=1e-3 * np.abs(plain).max()
        )


async def ask(url: str, model: str, samples: np.ndarray) -> list[ReplayReply]:
    """Send every sample at once."""
    target, _ = await dial(url, model)
    try:
        requests = [
            ReplayRequest(query_id=i, payload=sample, slo_s=5.0) for i, sample in enumerate(samples)
        ]
        return await asyncio.gather(*(target.infer(request) for request in requests))
    finally:
        await target.close()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own: see test_ray
def test_peer_and_ours_answer_alike_on_one_cluster(
    checkpoint_folder: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.bench.serving.cluster import running
    from serve.bench.serving.ray_peer import Tuning

    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    checkpoint = load_checkpoint(checkpoint_folder)
    small, middle = checkpoint.subnet_ids[:2]
    samples = rng.integers(0, 256, size=(6, *checkpoint.input.shape), dtype=np.uint8)
    config = parse_config({"checkpoint": str(checkpoint_folder), "port": 0, "slo_ms": 5000})
    with running(config, 4) as cluster:
        for tuning in (
            Tuning(small, False, 4, 0.05, None),
            Tuning(middle, True, 2, 0.05, 5.0),
        ):
            cluster.tune(tuning)
            cluster.use_policy(f"fixed:{tuning.subnet_id}")
            theirs = asyncio.run(ask(cluster.peer_url, checkpoint.name, samples))
            ours = asyncio.run(ask(cluster.url, checkpoint.name, samples))
            for one, other in zip(theirs, ours, strict=True):
                assert (one.status, one.subnet_id) == ("ok", tuning.subnet_id)
                assert one.accuracy == other.accuracy
                assert one.output is not None
                assert other.output is not None
                np.testing.assert_allclose(
                    one.output, other.output, rtol=1e-3, atol=1e-3 * np.abs(other.output).max()
                )
            assert 1 < max(one.batch_size for one in theirs) <= tuning.max_batch_size
        cluster.tune(Tuning(small, False, 4, 2.0, 0.05))  # waits longer than it may
        late = asyncio.run(ask(cluster.peer_url, checkpoint.name, samples[:1]))
        assert (late[0].status, late[0].reason) == ("dropped", "expired")
