"""LitServe as a peer: the same answers as ours, in the client's protocol, batched as asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from serve.bench.serving.peers import LoadPoint
from serve.bench.serving.setting import Setting, measured
from serve.bench.static import servers
from serve.bench.static.servers import MissingPeerError, litserve_batching
from serve.client.dial import dial
from subnetact import load_executor
from traces.open_loop.target import ReplayReply, ReplayRequest


@pytest.fixture(scope="module")
def setting(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    path = tmp_path_factory.mktemp("litserve") / "profile.json"
    return measured(checkpoint_folder, None, path, threads=1, repeats=1, tell=lambda text: None)


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
@pytest.mark.skipif(
    not servers.LITSERVE_PYTHON.exists(),
    reason=f"{servers.LITSERVE_PYTHON} is not there: `make litserve` installs it",
)
def test_litserve_answers_like_our_executor(setting: Setting, rng: np.random.Generator) -> None:
    subnet_id = setting.profile.subnet_ids[0]
    samples = rng.integers(0, 256, size=(5, *setting.input_shape), dtype=np.uint8)
    expected = load_executor(setting.checkpoint, subnet_ids=[subnet_id]).run(subnet_id, samples)
    for point in (LoadPoint(4, 0.05, 5.0), LoadPoint(1, 0.0, None)):
        with (
            litserve_batching(setting, [subnet_id]) as use,
            use(subnet_id, point) as url,
        ):
            replies = asyncio.run(ask(url, setting.load.model, samples))
        for reply, logits in zip(replies, expected, strict=True):
            assert (reply.status, reply.subnet_id) == ("ok", subnet_id)
            assert reply.accuracy == setting.profile.accuracy(subnet_id)
            np.testing.assert_allclose(reply.output, logits, rtol=1e-4, atol=1e-4)


def test_without_its_environment_it_says_how_to_install_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "LITSERVE_PYTHON", Path("nowhere/python"))
    with (
        pytest.raises(MissingPeerError, match="nowhere/python is not there: `make litserve`"),
        litserve_batching(setting, []),
    ):
        pass
