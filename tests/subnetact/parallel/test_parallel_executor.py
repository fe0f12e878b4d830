"""Over several workers a stream gets the logits of the plain network, in double precision."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from subnetact.decoding.extents import CacheFullError
from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_failure import WorkerFailedError
from subnetact.parallel.worker_grid import WorkerGrid
from supernet import Checkpoint, extract

BOUND = 1e-6  # of the largest logit, against double precision

Logits64 = Callable[[Sequence[int], Sequence[str]], torch.Tensor]


@pytest.fixture(scope="module")
def logits64(decoder: Checkpoint) -> Logits64:
    """The plain network in double precision, each token at a width of its own."""
    definition = decoder.definition
    net = extract(decoder.state, definition, definition.space.largest).double()
    widths: list[torch.Tensor] = []
    for name, module in net.named_modules():
        if name.endswith("mlp.down"):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * widths[-1],))
    hidden = definition.config.hidden  # type: ignore[attr-defined]
    archs = {subnet.subnet_id: subnet.arch for subnet in decoder.subnets}

    def logits(ids: Sequence[int], subnet_ids: Sequence[str]) -> torch.Tensor:
        kept = torch.tensor([int(hidden * archs[i].expand[0]) for i in subnet_ids])
        widths.append((torch.arange(hidden) < kept[:, None]).double())
        with torch.inference_mode():
            return net(torch.tensor([list(ids)]))[0]

    return logits


def started(decoder: Checkpoint, grid: WorkerGrid, **more: int) -> Iterator[ParallelExecutor]:
    executor = ParallelExecutor(
        decoder, grid, capacity_tokens=160, block_tokens=4, extent_tokens=4, **more
    )
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def two_shards(decoder: Checkpoint) -> Iterator[ParallelExecutor]:
    yield from started(decoder, WorkerGrid(shards=2))


@pytest.fixture(scope="module")
def three_shards(decoder: Checkpoint) -> Iterator[ParallelExecutor]:
    yield from started(decoder, WorkerGrid(shards=3))


@pytest.fixture(scope="module")
def two_stages(decoder: Checkpoint) -> Iterator[ParallelExecutor]:
    yield from started(decoder, WorkerGrid(stages=2), micro_tokens=5)


@pytest.fixture(scope="module")
def two_by_two(decoder: Checkpoint) -> Iterator[ParallelExecutor]:
    yield from started(decoder, WorkerGrid(shards=2, stages=2), micro_tokens=5)


def run_any_schedule(executor: ParallelExecutor, logits64: Logits64, seed: int) -> None:
    """Chunks of any size, streams in any company, widths and break-evens that change on the way."""
    draw = random.Random(seed)
    texts = [[draw.randrange(128) for _ in range(draw.randint(2, 40))] for _ in range(4)]
    widths: dict[int, list[str]] = {i: [] for i in range(len(texts))}
    sampled: dict[int, dict[int, np.ndarray]] = {i: {} for i in widths}
    while unread := [i for i, text in enumerate(texts) if len(widths[i]) < len(text)]:
        subnet_id = draw.choice(executor.subnet_ids)
        executor.table.spread_from = draw.choice((0, 8, 24, 1000))
        chunks = []
        for i in draw.sample(unread, draw.randint(1, len(unread))):
            done = len(widths[i])
            size = draw.choice((1, draw.randint(1, len(texts[i]) - done)))
            chunks.append(Chunk(i, tuple(texts[i][done : done + size]), draw.random() < 0.7))
        logits = iter(executor.run(subnet_id, chunks))
        executor.table.check_integrity()
        for i, ids, samples in chunks:
            widths[i] += [subnet_id] * len(ids)
            if samples:
                sampled[i][len(widths[i]) - 1] = next(logits)
        if draw.random() < 0.05:  # pre-empted: computed again from its beginning
            again = draw.choice(list(widths))
            executor.release(again)
            widths[again], sampled[again] = [], {}
    for i, text in enumerate(texts):
        expected = logits64(text, widths[i]).numpy()
        scale = np.abs(expected).max()
        for row, logits in sampled[i].items():
            assert np.abs(logits - expected[row]).max() <= BOUND * scale
        executor.release(i)
    executor.table.check_integrity()
    assert executor.table.free_tokens == executor.table.capacity_tokens


@pytest.mark.parametrize("seed", range(10))
def test_two_shards_give_the_plain_logits_for_any_split(
    two_shards: ParallelExecutor, logits64: Logits64, seed: int
) -> None:
    run_any_schedule(two_shards, logits64, seed)


@pytest.mark.parametrize("seed", range(10, 16))
def test_three_shards_give_the_plain_logits_for_any_split(
    three_shards: ParallelExecutor, logits64: Logits64, seed: int
) -> None:
    run_any_schedule(three_shards, logits64, seed)


@pytest.mark.parametrize("seed", range(20, 28))
def test_two_stages_give_the_plain_logits_for_any_chunking(
    two_stages: ParallelExecutor, logits64: Logits64, seed: int
) -> None:
    run_any_schedule(two_stages, logits64, seed)


@pytest.mark.parametrize("seed", range(30, 34))
def test_stages_and_shards_compose(
    two_by_two: ParallelExecutor, logits64: Logits64, seed: int
) -> None:
    run_any_schedule(two_by_two, logits64, seed)
