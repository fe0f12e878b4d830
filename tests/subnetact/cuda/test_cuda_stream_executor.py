"""The CUDA path of decoders with a CPU in place of the device: graphs, pages, padded rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetact.cuda.accelerator import HostAccelerator
from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor
from subnetact.decoding.extents import CacheFullError
from subnetact.decoding.ragged_batch import Chunk
from supernet import Arch, Checkpoint, extract

BOUND = 1e-5  # of the largest logit
COUNTS, CONTEXTS = (1, 2, 4), (8, 16)


@pytest.fixture(scope="module")
def executor(elastic_decoder: Checkpoint) -> CudaStreamExecutor:
    """Pages of 4 tokens; graphs for fewer streams and shorter contexts than the tests have."""
    made = CudaStreamExecutor(
        elastic_decoder,
        HostAccelerator(),
        capacity_tokens=160,
        page_tokens=4,
        decode_counts=COUNTS,
        graph_contexts=CONTEXTS,
    )
    captured = made.warm_up()
    assert captured == len(made.subnet_ids) * len(COUNTS) * len(CONTEXTS)
    return made


def fresh(executor: CudaStreamExecutor) -> CudaStreamExecutor:
    for sequence in executor.cache.table.sequences:
        executor.release(sequence)
    executor.cache.table.check_integrity()
    assert executor.cache.table.free_tokens == executor.cache.table.capacity_tokens
    return executor


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_schedule_gives_the_logits_of_the_plain_loop(
    executor: CudaStreamExecutor,
    elastic_decoder: Checkpoint,
    make_plain_loop: Callable[
        [Checkpoint], Callable[[Sequence[int], Sequence[Arch]], torch.Tensor]
    ],
    seed: int,
) -> None:
    """Decodes by graphs and without, prompts, both together, subnets that change on the way."""
    fresh(executor)
    plain = make_plain_loop(elastic_decoder)
    archs = {subnet.subnet_id: subnet.arch for subnet in elastic_decoder.subnets}
    draw = random.Random(seed)
    texts = [[draw.randrange(128) for _ in range(draw.randint(2, 22))] for _ in range(5)]
    ran: list[list[Arch]] = [[] for _ in texts]
    sampled: list[dict[int, torch.Tensor]] = [{} for _ in texts]
    while unread := [i for i, text in enumerate(texts) if len(ran[i]) < len(text)]:
        subnet_id = draw.choice(executor.subnet_ids)
        only_decodes = draw.random() < 0.6
        chunks = []
        for i in draw.sample(unread, draw.randint(1, len(unread))):
            done = len(ran[i])
            size = 1 if only_decodes else draw.randint(1, len(texts[i]) - done)
            chunks.append(Chunk(i, tuple(texts[i][done : done + size]), draw.random() < 0.8))
        logits = executor.run(subnet_id, chunks)
        assert logits.device.type == "cpu"
        assert logits.dtype == torch.float32
        rows = iter(logits)
        executor.cache.table.check_integrity()
        for i, ids, samples in chunks:
            ran[i] += [archs[subnet_id]] * len(ids)
            if samples:
                sampled[i][len(ran[i]) - 1] = next(rows)
        assert next(rows, None) is None
    for text, subnets, found in zip(texts, ran, sampled, strict=True):
        expected = plain(text, subnets)
        bound = BOUND * expected.abs().max().item()
        for row, logits in found.items():
            torch.testing.assert_close(logits, expected[row], atol=bound, rtol=0)
    fresh(executor)


def test_decodes_are_replayed_where_a_graph_takes_them(executor: CudaStreamExecutor) -> None:
    fresh(executor)
    subnet_id = executor.subnet_ids[0]
    before_all = executor.graph_status.fallbacks.get("larger than any captured batch", 0)

    def replays_of(chunks: list[Chunk]) -> int:
        before = executor.graph_status.replays
        executor.run(subnet_id, chunks)
        return executor.graph_status.replays - before

    assert replays_of([Chunk(i, (1, 2, 3)) for i in range(5)]) == 0  # parts of prompts
    assert replays_of([Chunk(i, (4,)) for i in range(3)]) == 1  # padded to four
    assert replays_of([Chunk(i, (4,)) for i in range(5)]) == 0  # more than any graph takes
    executor.run(subnet_id, [Chunk(0, (5,) * 11)])
    assert executor.cache.table.length(0) == 16
    assert replays_of([Chunk(0, (6,))]) == 0  # the 17th token: longer than any graph
    assert replays_of([Chunk(1, (6,)), Chunk(2, (7, 8))]) == 0  # not decodes alone
    fallbacks = executor.graph_status.fallbacks
    assert fallbacks["larger than any captured batch"] == before_all + 1


def test_without_graphs_everything_runs_eagerly(
    executor: CudaStreamExecutor, elastic_decoder: Checkpoint
) -> None:
    fresh(executor)
    eager = CudaStreamExecutor(
        elastic_decoder,
        HostAccelerator(),
        capacity_tokens=160,
        page_tokens=4,
        decode_counts=COUNTS,
        graph_contexts=CONTEXTS,
        graph_budget_bytes=0,
    )
    assert eager.warm_up() == 0
    for subnet_id in executor.subnet_ids:
        chunks = [
            [Chunk(i, (i + 1,) * (i + 2)) for i in range(3)],
            [Chunk(i, (9,)) for i in (2, 0)],
        ]
        for each in chunks:
            torch.testing.assert_close(executor.run(subnet_id, each), eager.run(subnet_id, each))
        for i in range(3):
            executor.release(i)
            eager.release(i)
    assert eager.graph_status.replays == 0
    eager.close()


def test_what_another_stream_left_in_a_page_is_not_read(
    executor: CudaStreamExecutor,
    elastic_decoder: Checkpoint,
    make_plain_loop: Callable[
        [Checkpoint], Callable[[Sequence[int], Sequence[Arch]], torch.Tensor]
    ],
) -> None:
    """Numbers that went wrong end with their stream, though pages are gathered whole."""
    fresh(executor)
    table, cache = executor.cache.table, executor.cache
    for pool in (cache.keys, cache.values):
        pool[:, :, : table.capacity_tokens] = torch.nan  # as streams that are over left them
    largest = executor.subnet_ids[-1]
    arch = elastic_decoder.subnet(largest).arch
    text = [3, 1, 4, 1, 5, 9, 2]
    found = [
        executor.run(largest, [Chunk("a", tuple(text[:5]))])[0],  # eagerly
        executor.run(largest, [Chunk("a", (text[5],)), Chunk("b", (7,))])[0],  # by a graph
    ]
    executor.release("a")
    executor.release("b")
    expected = make_plain_loop(elastic_decoder)(text[:6], [arch] * 6)[4:]
    bound = BOUND * expected.abs().max().item()
    torch.testing.assert_close(torch.stack(found), expected, atol=bound, rtol=0)


def test_half_precision_stays_near(elastic_decoder: Checkpoint) -> None:
    executor = CudaStreamExecutor(
        elastic_decoder, HostAccelerator(), capacity_tokens=64, dtype=torch.bfloat16
    )
    executor.warm_up()
    ids = tuple(range(3, 15))
    for subnet in elastic_decoder.subnets:
        executor.run(subnet.subnet_id, [Chunk("a", ids[:-1], False)])
        logits = executor.run(subnet.subnet_id, [Chunk("a", ids[-1:])])[0]
        net = extract(elastic_decoder.state, elastic_decoder.definition, subnet.arch)
        with torch.inference_mode():
            expected = net(torch.tensor([ids]))[0, -1]
        assert 0 < (logits - expected).norm() < 0.1 * expected.norm()
        executor.release("a")


def test_an_iteration_is_over_when_it_returns(elastic_decoder: Checkpoint) -> None:
    """Also one that samples nothing, from which nothing is copied: whoever times it would err."""

    class Waited:
        def __init__(self) -> None:
            self.count = 0

        def wait(self) -> None:
            self.count += 1

    class Marking(HostAccelerator):
        last = Waited()

        def mark(self) -> Waited:
            return self.last

    accelerator = Marking()
    executor = CudaStreamExecutor(
        elastic_decoder, accelerator, capacity_tokens=64, decode_counts=(1,), graph_contexts=(16,)
    )
    executor.warm_up()
    for chunk in (Chunk("a", (1, 2, 3), False), Chunk("a", (4, 5)), Chunk("a", (6,), False)):
        before = accelerator.last.count
        executor.run(executor.subnet_ids[0], [chunk])
        assert accelerator.last.count > before, chunk


def test_what_cannot_be_is_refused(
    executor: CudaStreamExecutor, elastic_decoder: Checkpoint
) -> None:
    fresh(executor)
    with pytest.raises(CacheFullError, match="needs 164 more tokens of cache, 160 of 160 are free"):
        executor.run(executor.subnet_ids[0], [Chunk("a", (1,) * 161)])
    with pytest.raises(KeyError):
        executor.run("d9", [Chunk("a", (1,))])
    assert executor.cache.table.sequences == ()
    with pytest.raises(
        ValueError, match=r"decode_counts are \[0\], graph_contexts \[8\]; allowed 1"
    ):
        CudaStreamExecutor(
            elastic_decoder, HostAccelerator(), decode_counts=(0,), graph_contexts=(8,)
        )


def test_float32_is_never_tf32_by_graphs_or_eagerly(
    elastic_decoder: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    logits = CudaStreamExecutor._logits

    def watched(self: CudaStreamExecutor, x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return logits(self, x)

    monkeypatch.setattr(CudaStreamExecutor, "_logits", watched)
    made = CudaStreamExecutor(
        elastic_decoder, HostAccelerator(), capacity_tokens=32, page_tokens=4,
        decode_counts=(1,), graph_contexts=(8,),
    )  # fmt: skip
    made.warm_up()
    by_graphs = len(seen)
    made.run(made.subnet_ids[0], [Chunk("a", (1, 2, 3))])
    assert len(seen) > by_graphs > 0
    assert set(seen) == {"ieee"}
    assert torch.backends.cuda.matmul.fp32_precision != "ieee", "torch's default"
