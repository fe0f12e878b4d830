"""Whatever the split into iterations, streams get the logits of the plain loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetact.decoding.extents import CacheFullError
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from supernet import Arch, Checkpoint, define_supernet, extract

BOUND = 1e-5  # of the largest logit


def assert_equal(logits: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(logits, expected, atol=BOUND * scale, rtol=0)
    best, second = expected.topk(2).values
    if best - second > 2 * BOUND * scale:  # else rounding may choose
        assert logits.argmax() == expected.argmax()


@pytest.fixture(scope="module")
def executor(decoder: Checkpoint) -> StreamExecutor:
    """Blocks of 4 tokens: sequences soon lie in several slabs."""
    return StreamExecutor(decoder, capacity_tokens=160, block_tokens=4)


class Elastic(NamedTuple):
    """An executor, the archs that it runs by their ids, and the plain loop."""

    executor: StreamExecutor
    archs: dict[str, Arch]
    plain: Callable[[Sequence[int], Sequence[Arch]], torch.Tensor]


@pytest.fixture(scope="module", params=["widths", "all_axes"])
def elastic(
    request: pytest.FixtureRequest,
    decoder: Checkpoint,
    elastic_decoder: Checkpoint,
    make_plain_loop: Callable[..., Any],
) -> Elastic:
    """The ladder of a decoder and some subnets whose blocks differ."""
    checkpoint = decoder if request.param == "widths" else elastic_decoder
    executor = StreamExecutor(checkpoint, capacity_tokens=160, block_tokens=4)
    space, rng = checkpoint.definition.space, np.random.default_rng(0)
    archs = [*space.ladder(), *(space.sample(rng) for _ in range(4))]
    return Elastic(
        executor, {executor.add(arch): arch for arch in archs}, make_plain_loop(checkpoint)
    )


def fresh(executor: StreamExecutor) -> StreamExecutor:
    for sequence in executor.cache.table.sequences:
        executor.release(sequence)
    executor.cache.table.check_integrity()
    assert executor.cache.table.free_tokens == executor.cache.table.capacity_tokens
    return executor


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_schedule_gives_the_logits_of_the_plain_loop(elastic: Elastic, seed: int) -> None:
    """Chunks of any size, streams in any company and order, a subnet per iteration, pre-emption.

    A stream may change its depth between two tokens: skipped blocks write keys and values.
    """
    executor = fresh(elastic.executor)
    draw = random.Random(seed)
    texts = [[draw.randrange(128) for _ in range(draw.randint(2, 20))] for _ in range(4)]
    widths: dict[int, list[str]] = {i: [] for i in range(len(texts))}
    sampled: dict[int, dict[int, torch.Tensor]] = {i: {} for i in widths}

    def check(i: int) -> None:
        """Causal: one run of the plain network tells what follows each token."""
        if sampled[i]:
            archs = [elastic.archs[subnet_id] for subnet_id in widths[i]]
            expected = elastic.plain(texts[i][: len(widths[i])], archs)
            for row, logits in sampled[i].items():
                assert_equal(logits, expected[row])

    while unread := [i for i, text in enumerate(texts) if len(widths[i]) < len(text)]:
        subnet_id = draw.choice(executor.subnet_ids)
        chunks = []
        for i in draw.sample(unread, draw.randint(1, len(unread))):
            done = len(widths[i])
            size = draw.choice((1, draw.randint(1, len(texts[i]) - done)))
            ids = tuple(texts[i][done : done + size])
            chunks.append(Chunk(i, ids, draw.random() < 0.7))
        logits = iter(executor.run(subnet_id, chunks))
        executor.cache.table.check_integrity()
        for i, ids, samples in chunks:
            widths[i] += [subnet_id] * len(ids)
            if samples:
                sampled[i][len(widths[i]) - 1] = next(logits)
        if draw.random() < 0.05:  # pre-empted: computed again from its beginning
            again = draw.choice(list(widths))
            check(again)
            executor.release(again)
            widths[again], sampled[again] = [], {}
    for i in widths:
        check(i)
    fresh(executor)


ALL_AXES: dict[str, Any] = {
    "num_heads": 6,
    "depth": 3,
    "heads_choices": (1, 3),
    "depth_choices": (2, 3),
    "windows": (0, 20, 0),
}


@pytest.mark.parametrize("form", ["views", "packed", "half"])
@pytest.mark.parametrize("config", [{"tied": True}, {"tied": False}, ALL_AXES])
def test_every_subnet_equals_the_extracted_one(
    form: str, config: dict[str, Any], make_decoder
) -> None:
    if not has_form(form):
        pytest.skip(f"no {form} linear layers in this build of torch")
    checkpoint: Checkpoint = make_decoder(define_supernet("decoder_tiny", **config))
    if form == "half":  # exact for weights that are kept in 16 bit
        halved = {name: t.half().float() for name, t in checkpoint.state.items()}
        checkpoint = replace(checkpoint, state=halved)
    executor = StreamExecutor(checkpoint, packing=form)
    ids = list(range(7, 47))
    for subnet in checkpoint.subnets:
        chunks = [Chunk("a", tuple(ids[:25]), False)], [Chunk("a", tuple(ids[25:]))]
        logits = [executor.run(subnet.subnet_id, each) for each in chunks][-1]
        net = extract(checkpoint.state, checkpoint.definition, subnet.arch)
        with torch.inference_mode():
            expected = net(torch.tensor([ids]))[0, -1]
        assert_equal(logits[0], expected)
        executor.release("a")


def test_int8_weights_stay_near(make_decoder) -> None:
    if not has_form("int8"):
        pytest.skip("no int8 linear layers in this build of torch")
    checkpoint: Checkpoint = make_decoder(
        define_supernet("decoder_tiny", width=64, head_dim=16, hidden=128, expand_choices=(0.5, 1))
    )
    plain, rounded = (StreamExecutor(checkpoint, packing=form) for form in ("views", "int8"))
    chunk = Chunk("a", tuple(range(20)))
    for subnet_id in checkpoint.subnet_ids:
        expected, logits = (e.run(subnet_id, [chunk]) for e in (plain, rounded))
        assert 0 < (logits - expected).norm() < 0.1 * expected.norm()
        for each in (plain, rounded):
            each.release("a")


def test_no_logits_are_computed_for_rows_that_do_not_sample(executor: StreamExecutor) -> None:
    fresh(executor)
    logits = executor.run(
        executor.subnet_ids[0], [Chunk("a", (1, 2, 3), False), Chunk("b", (4,)), Chunk("c", (5, 6))]
    )
    assert logits.shape == (2, 128)
    assert executor.run(executor.subnet_ids[0], [Chunk("a", (9,), False)]).shape == (0, 128)


def test_a_shared_beginning_gives_the_same_logits_as_a_cold_one(
    executor: StreamExecutor, plain_logits
) -> None:
    fresh(executor)
    wide, narrow = executor.subnet_ids[-1], executor.subnet_ids[0]
    prompt = tuple(range(20, 38))
    executor.run(wide, [Chunk("a", prompt, False)])
    executor.cache.table.share("a", "b", 16)
    executor.release("a")  # what is shared stays
    executor.cache.table.check_integrity()
    logits = executor.run(narrow, [Chunk("b", (*prompt[16:], 3))])
    expected = plain_logits([*prompt, 3], [wide] * 16 + [narrow] * 3)
    assert_equal(logits[0], expected[-1])


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "needs at least one chunk"),
        ([Chunk("new", ())], "sequence 'new' has an empty chunk"),
        ([Chunk("new", (1, 128))], "sequence 'new' has token 128, allowed 0 to 127"),
        ([Chunk("new", (-1,))], "has token -1, allowed 0 to 127"),
        ([Chunk("new", (1,)), Chunk("new", (2,))], "one chunk of a sequence"),
        ([Chunk("new", (1,) * 257)], "would be 257 tokens long, allowed 256"),
    ],
)
def test_an_iteration_that_cannot_be_is_refused_and_changes_nothing(
    executor: StreamExecutor, chunks: list[Chunk], message: str
) -> None:
    fresh(executor)
    with pytest.raises(ValueError, match=message):
        executor.run(executor.subnet_ids[0], chunks)
    assert executor.cache.table.sequences == ()


def test_a_full_cache_refuses_the_whole_iteration(executor: StreamExecutor) -> None:
    fresh(executor)
    executor.run(executor.subnet_ids[0], [Chunk("a", (1,) * 100, False)])
    with pytest.raises(CacheFullError, match="needs 64 more tokens of cache, 60 of 160 are free"):
        executor.run(executor.subnet_ids[0], [Chunk("b", (1, 2)), Chunk("c", (1,) * 58)])
    assert executor.cache.table.sequences == ("a",)
    assert executor.cache.table.length("a") == 100


def test_only_decoders_make_streams(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="tiny is a resnet, which makes no text"):
        StreamExecutor(checkpoint)
