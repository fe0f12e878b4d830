"""The released decoder: real weights, contexts up to its limit, quality as it says."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from subnetact.decoding.generation import generate
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.sampling import Sampling
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from supernet import Arch, Checkpoint, load_checkpoint
from supernet.subnets.agreement import top1_agreement
from supernet.tokenizer import Tokenizer
from training.config import DataConfig
from training.data.corpus import load_corpus
from training.evaluation.decoder import spread_windows

pytest.importorskip("tokenizers")

FOLDER = Path("models/decoder_shakespeare")
VERSE = (
    "ROMEO:\nWhat shall we say, my lord, of such a night,\n"
    "That comes so late and goes so soon away?\n\n"
    "JULIET:\nThe day is long enough for them that wait.\n\n"
)


@pytest.fixture(scope="module")
def released() -> Checkpoint:
    return load_checkpoint(FOLDER)


@pytest.fixture(scope="module")
def long_text(released: Checkpoint) -> list[int]:
    """Ids of a text as long as the positions."""
    assert released.text is not None
    return Tokenizer(released.text).encode(VERSE * 16)[:1000]


@pytest.mark.parametrize("seed", range(2))
def test_long_contexts_in_chunks_at_any_width_are_the_plain_loop(
    seed: int,
    released: Checkpoint,
    long_text: list[int],
    make_plain_loop: Callable[
        [Checkpoint], Callable[[Sequence[int], Sequence[Arch]], torch.Tensor]
    ],
) -> None:
    archs = {subnet.subnet_id: subnet.arch for subnet in released.subnets}
    executor = StreamExecutor(released, capacity_tokens=1024)
    draw, widths, sampled = random.Random(seed), list[Arch](), dict[int, torch.Tensor]()
    while len(widths) < len(long_text):
        size = min(draw.choice((1, 40, 256)), len(long_text) - len(widths))
        subnet_id = draw.choice(sorted(archs))
        ids = tuple(long_text[len(widths) : len(widths) + size])
        (row,) = executor.run(subnet_id, [Chunk("verse", ids, True)])
        widths += [archs[subnet_id]] * size
        sampled[len(widths) - 1] = torch.as_tensor(row)
    expected = make_plain_loop(released)(long_text, widths)
    for position, row in sampled.items():
        bound = 1e-5 * float(expected[position].abs().max())
        torch.testing.assert_close(row, expected[position], atol=bound, rtol=0)


def test_two_workers_read_a_long_context_as_one_does(
    released: Checkpoint, long_text: list[int]
) -> None:
    subnet_id = released.subnets[1].subnet_id
    chunks = [Chunk("verse", tuple(long_text[:900]), True)]
    (expected,) = StreamExecutor(released, capacity_tokens=1024).run(subnet_id, chunks)
    executor = ParallelExecutor(released, WorkerGrid(shards=2), capacity_tokens=1024)
    try:
        (row,) = executor.run(subnet_id, chunks)
    finally:
        executor.close()
    bound = 1e-5 * float(torch.as_tensor(expected).abs().max())
    torch.testing.assert_close(torch.as_tensor(row), torch.as_tensor(expected), atol=bound, rtol=0)


def test_half_packing_writes_what_views_write(released: Checkpoint) -> None:
    """Weights are kept in 16 bit, which `half` reads exactly."""
    if not has_form("half"):
        pytest.skip("no half linear layers in this build of torch")
    assert released.text is not None
    tokenizer = Tokenizer(released.text)
    texts: list[str] = []
    for packing in ("views", "half"):
        executor = StreamExecutor(released, capacity_tokens=512, packing=packing)
        made = generate(
            executor,
            tokenizer.encode("ROMEO:"),
            subnet_id=released.subnets[-1].subnet_id,
            max_tokens=48,
            sampling=Sampling(),
            eos_ids=(),
        )
        texts.append(tokenizer.decode(list(made)))
    assert texts[0] == texts[1]
    assert "my lord" in texts[0]  # it has learned to write


@pytest.mark.slow
def test_quality_and_perplexity_are_those_that_it_says(released: Checkpoint) -> None:
    """On the same held-out windows, from the 16-bit weights that are released."""
    root = os.environ.get("SUPERNET_DATA_DIR")
    text = Path(root or "") / "tiny_shakespeare" / "input.txt.gz"
    if not root or not text.exists():
        pytest.skip("SUPERNET_DATA_DIR with tiny_shakespeare is not set")
    options = DataConfig(
        name="corpus", path=str(text), vocabulary=str(FOLDER), size=256, validation=0.05
    )
    windows = spread_windows(load_corpus(options, seed=0).test, 64)
    archs = [subnet.arch for subnet in released.subnets]
    found = top1_agreement(dict(released.state), released.definition, archs, windows)
    for subnet in released.subnets:
        measured = found[subnet.subnet_id]
        stated = released.provenance["perplexity"][subnet.subnet_id]
        assert measured.share == pytest.approx(subnet.accuracy, abs=0.002)
        assert measured.perplexity == pytest.approx(stated, rel=0.002)
