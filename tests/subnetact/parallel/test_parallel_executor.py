"""Over several workers a stream gets the logits of the plain network, in double precision."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from subnetact.decoding.extents import CacheFullError
from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel import parallel_executor
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_device import GLOO
from subnetact.parallel.worker_failure import WorkerFailedError
from subnetact.parallel.worker_grid import WorkerGrid
from supernet import Arch, Checkpoint, define_supernet, extract

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
def over_gloo(decoder: Checkpoint) -> Iterator[ParallelExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_executor, "backend_for", lambda *_: GLOO)
        yield from started(decoder, WorkerGrid(shards=2))


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


@pytest.mark.parametrize("seed", range(40, 42))
def test_so_they_do_where_no_memory_can_be_shared(
    over_gloo: ParallelExecutor, logits64: Logits64, seed: int
) -> None:
    assert over_gloo.backend == GLOO
    run_any_schedule(over_gloo, logits64, seed)


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


def logits_of(
    executor: ParallelExecutor, sequence: str, ids: Sequence[int], subnet_id: str
) -> np.ndarray:
    return executor.run(subnet_id, [Chunk(sequence, tuple(ids))])[0]


def assert_plain(logits: np.ndarray, expected: torch.Tensor) -> None:
    assert np.abs(logits - expected.numpy()).max() <= BOUND * expected.abs().max().item()


def test_a_short_stream_is_run_by_its_shard_alone(
    two_shards: ParallelExecutor, logits64: Logits64
) -> None:
    """The other worker is stopped, and nobody waits for it."""
    two_shards.table.spread_from = 1000
    width = two_shards.subnet_ids[-1]
    os.kill(two_shards.process_ids[1], signal.SIGSTOP)
    try:
        logits = logits_of(two_shards, "short", range(9), width)
    finally:
        os.kill(two_shards.process_ids[1], signal.SIGCONT)
    assert_plain(logits, logits64(range(9), [width] * 9)[-1])
    two_shards.release("short")


def test_a_shared_beginning_gives_the_logits_of_a_cold_one(
    two_shards: ParallelExecutor, logits64: Logits64
) -> None:
    two_shards.table.spread_from = 0
    wide, narrow = two_shards.subnet_ids[-1], two_shards.subnet_ids[0]
    ids = list(range(20, 38))
    two_shards.run(wide, [Chunk("a", tuple(ids), False)])
    two_shards.share("a", "b", 16)
    two_shards.release("a")
    logits = logits_of(two_shards, "b", [*ids[16:], 3], narrow)
    assert_plain(logits, logits64([*ids, 3], [wide] * 16 + [narrow] * 3)[-1])
    two_shards.release("b")


def test_a_worker_that_is_gone_costs_its_streams_only(
    decoder: Checkpoint, logits64: Logits64
) -> None:
    executor = ParallelExecutor(
        decoder,
        WorkerGrid(shards=2),
        capacity_tokens=160,
        block_tokens=4,
        extent_tokens=4,
        spread_from=16,
    )
    try:
        width = executor.subnet_ids[-1]
        ids = list(range(30))
        executor.run(width, [Chunk("long", tuple(ids[:20]), False), Chunk("short", (1, 2), False)])
        os.kill(executor.process_ids[1], signal.SIGKILL)
        before_s = time.monotonic()
        with pytest.raises(WorkerFailedError):
            executor.run(width, [Chunk("long", (20,)), Chunk("short", (3,))])
        assert time.monotonic() - before_s < 2.0
        assert_plain(logits_of(executor, "short", [3], width), logits64([1, 2, 3], [width] * 3)[-1])
        with pytest.raises(WorkerFailedError, match="'long' was with a worker that is gone"):
            executor.run(width, [Chunk("long", (20,))])
        executor.share("long", "of_long", 16)
        with pytest.raises(WorkerFailedError, match="'of_long' was with a worker"):
            executor.run(width, [Chunk("of_long", (20,))])
        executor.release("long")
        executor.run(width, [Chunk("other", tuple(range(17)), False)])
        while not executor.is_whole:  # what came meanwhile went where there was room
            time.sleep(0.01)
            executor.run(width, [Chunk("clock", (1,))])
            executor.release("clock")
        logits = logits_of(executor, "long", ids, width)
        assert all(executor.table.held("long"))
        assert_plain(logits, logits64(ids, [width] * 30)[-1])
        assert time.monotonic() - before_s < 15.0
        executor.table.check_integrity()
    finally:
        executor.close()


def test_a_worker_that_hangs_is_ended(decoder: Checkpoint, logits64: Logits64) -> None:
    """Who of those that wait for each other hangs can't be told: all that do not answer end."""
    executor = ParallelExecutor(decoder, WorkerGrid(shards=2), extent_tokens=64, hung_after_s=0.5)
    try:
        width = executor.subnet_ids[0]
        executor.run(width, [Chunk("a", tuple(range(80)), False)])
        os.kill(executor.process_ids[1], signal.SIGSTOP)
        before_s = time.monotonic()
        with pytest.raises(WorkerFailedError, match="worker 1 does not answer"):
            executor.run(width, [Chunk("a", (80,))])
        assert time.monotonic() - before_s < 3.0
        executor.release("a")
        assert_plain(
            logits_of(executor, "a", range(80), width), logits64(range(80), [width] * 80)[-1]
        )
    finally:
        executor.close()


def test_a_stage_that_is_gone_costs_all_and_comes_back(
    two_stages: ParallelExecutor, logits64: Logits64
) -> None:
    width = two_stages.subnet_ids[0]
    two_stages.run(width, [Chunk("a", (1, 2, 3), False)])
    os.kill(two_stages.process_ids[0], signal.SIGKILL)
    before_s = time.monotonic()
    with pytest.raises(WorkerFailedError):
        two_stages.run(width, [Chunk("a", (4,))])
    assert time.monotonic() - before_s < 2.0
    two_stages.release("a")
    assert_plain(
        logits_of(two_stages, "a", range(12), width), logits64(range(12), [width] * 12)[-1]
    )
    assert time.monotonic() - before_s < 15.0
    two_stages.release("a")


def test_a_service_that_is_asked_to_end_keeps_its_streams(
    two_shards: ParallelExecutor, logits64: Logits64
) -> None:
    """SIGTERM to all processes is the executor's to act on: they go on, for it may drain first."""
    width = two_shards.subnet_ids[0]
    two_shards.table.spread_from = 0
    two_shards.run(width, [Chunk("a", tuple(range(5)), False)])
    forkserver: Any = multiprocessing.forkserver
    server = forkserver._forkserver._forkserver_pid
    ids = two_shards.process_ids
    for process_id in (server, *ids):
        os.kill(process_id, signal.SIGTERM)
    time.sleep(0.1)
    assert_plain(logits_of(two_shards, "a", [5], width), logits64(range(6), [width] * 6)[-1])
    assert two_shards.process_ids == ids
    two_shards.release("a")
    others = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60.0,))
    others.start()  # not a worker
    others.terminate()
    others.join(10.0)
    assert others.exitcode == -signal.SIGTERM


def test_an_order_that_fails_is_no_lost_worker(
    two_shards: ParallelExecutor, logits64: Logits64, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = two_shards.subnet_ids[0]
    two_shards.table.spread_from = 0
    two_shards.run(width, [Chunk("a", (1, 2, 3, 4, 5), False)])
    ids = two_shards.process_ids
    monkeypatch.setattr(two_shards, "subnet_ids", (*two_shards.subnet_ids, "e9"))
    with pytest.raises(RuntimeError, match="KeyError: 'e9'"):
        two_shards.run("e9", [Chunk("a", (6,))])
    assert_plain(logits_of(two_shards, "a", [6], width), logits64(range(1, 7), [width] * 6)[-1])
    assert two_shards.process_ids == ids
    two_shards.release("a")


def test_what_cannot_be_is_refused_and_changes_nothing(two_shards: ParallelExecutor) -> None:
    width = two_shards.subnet_ids[0]
    with pytest.raises(KeyError):
        two_shards.run("e7", [Chunk("a", (1,))])
    with pytest.raises(ValueError, match="has token 128, allowed 0 to 127"):
        two_shards.run(width, [Chunk("a", (128,))])
    with pytest.raises(ValueError, match="would be 257 tokens long, allowed 256"):
        two_shards.run(width, [Chunk("a", (1,) * 257)])
    two_shards.run(width, [Chunk("a", (1,) * 200, False)])
    with pytest.raises(CacheFullError, match="needs 124 more tokens of cache, 120 of 320 are free"):
        two_shards.run(width, [Chunk("b", (1,) * 121)])
    two_shards.release("a")
    assert two_shards.table.sequences == ()


def test_a_grid_has_as_many_blocks_as_stages_at_least(decoder: Checkpoint) -> None:
    with pytest.raises(ValueError, match="3 stages for 2 blocks; allowed 1 to 2"):
        ParallelExecutor(decoder, WorkerGrid(stages=3))
    with pytest.raises(ValueError, match="shards is 0, allowed 1 or more"):
        WorkerGrid(shards=0)
    assert [list(WorkerGrid(stages=3).blocks(i, 8)) for i in range(3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7],
    ]


def test_only_decoders_are_spread(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="tiny is a resnet, which makes no text"):
        ParallelExecutor(checkpoint, WorkerGrid(shards=2))


def test_closing_ends_the_workers(decoder: Checkpoint) -> None:
    executor = ParallelExecutor(decoder, WorkerGrid(shards=2))
    ids = executor.process_ids
    executor.close()
    for process_id in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


def test_workers_that_cannot_start_are_given_up(decoder: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailedError, match="ended 3 times before it had loaded its weights"):
        ParallelExecutor(decoder, WorkerGrid(shards=2), folder=tmp_path)


def test_fewer_heads_and_blocks_go_over_shards_and_stages(
    make_decoder: Callable[..., Checkpoint], make_plain_loop: Callable[..., Any]
) -> None:
    """Subnets of all axes in turn: a skipped block writes keys and values on its shard."""
    checkpoint = make_decoder(
        define_supernet(
            "decoder_tiny",
            num_heads=6,
            depth=4,
            heads_choices=(1, 3),
            depth_choices=(2, 4),
            qk_norm=True,
        )
    )
    archs = {subnet.subnet_id: subnet.arch for subnet in checkpoint.subnets}
    text = [(7 * i + 3) % 128 for i in range(24)]
    made = started(checkpoint, WorkerGrid(shards=2, stages=2), micro_tokens=5)
    executor = next(made)
    ran: list[Arch] = []
    rows: dict[int, np.ndarray] = {}
    for step, size in enumerate((9, 1, 6, 1, 1, 5, 1)):
        subnet_id = list(archs)[step % len(archs)]
        chunk = Chunk("a", tuple(text[len(ran) : len(ran) + size]))
        logits = executor.run(subnet_id, [chunk, Chunk(f"other {step}", (1, 2))])
        ran += [archs[subnet_id]] * size
        rows[len(ran) - 1] = logits[0]
    next(made, None)
    expected = make_plain_loop(checkpoint)(text[: len(ran)], ran)
    assert len(set(ran)) > 2
    for row, logits in rows.items():
        bound = 1e-5 * float(expected.abs().max())
        np.testing.assert_allclose(logits, expected[row].numpy(), atol=bound)


def test_sliding_windows_are_refused(make_decoder: Callable[..., Checkpoint]) -> None:
    checkpoint = make_decoder(define_supernet("decoder_tiny", windows=(0, 4)))
    with pytest.raises(ValueError, match="has sliding windows, .*; run it in one process"):
        ParallelExecutor(checkpoint, WorkerGrid(shards=2))
