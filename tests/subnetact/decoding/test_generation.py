"""Texts by streams are those of the plain loop: greedy, drawn, and at changing widths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from subnetact.decoding.drawn_texts import drawn_texts
from subnetact.decoding.generation import Switch, generate, subnet_at
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.sampling import Sampling
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.decoding.switches import parse_switches
from supernet import Checkpoint

PROMPT = [3, 77, 20, 8, 101, 2, 60]


@pytest.fixture(scope="module")
def executor(decoder: Checkpoint) -> StreamExecutor:
    return StreamExecutor(decoder, capacity_tokens=320)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=5)])
def test_a_text_with_switches_is_that_of_the_plain_loop(
    executor: StreamExecutor, plain_logits, sampling: Sampling
) -> None:
    wide, narrow = executor.subnet_ids[-1], executor.subnet_ids[0]
    switches = [Switch(4, narrow), Switch(9, wide)]
    made = list(
        generate(
            executor, PROMPT, subnet_id=wide, max_tokens=14, sampling=sampling, switches=switches
        )
    )
    ids, widths = list(PROMPT), [wide] * len(PROMPT)
    for token in range(14):
        current = subnet_at(switches, wide, token)
        widths[-1 if token else slice(None)] = current if token else [current] * len(ids)
        ids.append(sampling.choose(plain_logits(ids, widths)[-1], len(ids)))
        widths.append(wide)
    assert made == ids[len(PROMPT) :]
    assert executor.cache.table.sequences == ()


def test_a_draw_depends_on_seed_and_position_alone(executor: StreamExecutor) -> None:
    sampling = Sampling(3.0, seed=3)
    alone = executor.run(executor.subnet_ids[0], [Chunk("a", tuple(PROMPT))])[0]
    executor.release("a")
    company = [Chunk("b", (9,) * 30), Chunk("a", tuple(PROMPT)), Chunk("c", (5,))]
    beside = executor.run(executor.subnet_ids[0], company)[1]
    for sequence in "abc":
        executor.release(sequence)
    drawn = [sampling.choose(alone, position) for position in range(50)]
    assert drawn == [sampling.choose(beside, position) for position in range(50)]
    assert len(set(drawn)) > 5
    assert drawn != [Sampling(3.0, seed=4).choose(alone, position) for position in range(50)]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    for temperature in (0.5, 1.0):
        draws = [Sampling(temperature).choose(logits, position) for position in range(4000)]
        shares = torch.bincount(torch.tensor(draws), minlength=4) / 4000
        expected = torch.softmax(logits / temperature, -1)
        assert (shares - expected).abs().max() < 0.03  # 3.8 standard deviations


def test_a_text_ends_at_its_end_its_length_or_the_longest_context(
    executor: StreamExecutor,
) -> None:
    subnet_id = executor.subnet_ids[-1]
    whole = list(generate(executor, PROMPT, subnet_id=subnet_id, max_tokens=12))
    assert len(whole) == 12
    cut = generate(executor, PROMPT, subnet_id=subnet_id, max_tokens=12, eos_ids=[whole[5]])
    assert list(cut) == whole[: whole.index(whole[5])]
    full = generate(executor, [1] * 254, subnet_id=subnet_id, max_tokens=12)
    assert len(list(full)) == 3  # the last is read by nobody
    assert executor.cache.table.sequences == ()


def test_leaving_early_frees_the_cache(executor: StreamExecutor) -> None:
    text = generate(executor, PROMPT, subnet_id=executor.subnet_ids[0], max_tokens=12)
    next(text)
    assert executor.cache.table.sequences != ()
    text.close()
    assert executor.cache.table.sequences == ()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "the prompt is empty"), ([1] * 257, "has 257 tokens, allowed 256"), ([500], "token 500")],
)
def test_a_prompt_that_cannot_be_is_refused(
    executor: StreamExecutor, prompt: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(generate(executor, prompt, subnet_id=executor.subnet_ids[0], max_tokens=2))
    assert executor.cache.table.sequences == ()


def test_switches_are_read(decoder: Checkpoint) -> None:
    space = decoder.definition.space
    read = parse_switches("largest@32, e=0.5@16,d=2,e=0.25@40", decoder)
    assert read == [
        (16, (space.uniform(expand=0.5), "fp32")),
        (32, (space.largest, "fp32")),
        (40, (space.uniform(depth=2, expand=0.25), "fp32")),
    ]
    assert parse_switches("", decoder) == []
    served = decoder.subnet_ids[0]
    assert parse_switches(f"{served}@0", decoder) == [(0, (decoder.subnets[0].arch, "fp32"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("e=0.5", "'e=0.5' is not SPEC@TOKEN"),
        ("e=0.5@x", "is not SPEC@TOKEN"),
        ("e=0.3@4", "expand.* is 0.3, allowed 0.25, 0.5"),
        ("e=0.5@4,largest@4", "name a token twice"),
    ],
)
def test_switches_that_say_nothing_are_refused(
    decoder: Checkpoint, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_switches(text, decoder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, allowed a number, 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


def test_drawn_texts_do_not_depend_on_how_many_are_drawn_at_once(
    executor: StreamExecutor,
) -> None:
    width = executor.subnet_ids[-1]

    def drawn(at_once: int) -> list[list[int]]:
        texts = drawn_texts(
            executor, [3, 9], subnet_id=width, count=5, max_tokens=12, seed=4, eos_ids=[7, 50],
            temperature=2.0, at_once=at_once,
        )  # fmt: skip
        return sorted(texts)

    alone = drawn(1)
    assert drawn(3) == alone
    assert len({tuple(text) for text in alone}) == 5
    assert all(1 <= len(text) <= 12 and not {7, 50} & set(text[1:]) for text in alone)
    assert executor.cache.table.sequences == ()
    with pytest.raises(ValueError, match="behind at least one first id"):
        next(drawn_texts(executor, [], subnet_id=width, count=1, max_tokens=2))


def test_drawn_texts_take_the_memory_of_those_at_once(decoder: Checkpoint) -> None:
    """Room for three texts is enough for many; a text that ends makes room for one."""
    executor = StreamExecutor(decoder, capacity_tokens=36, block_tokens=4)
    texts = drawn_texts(
        executor, [3], subnet_id=executor.subnet_ids[0], count=9, max_tokens=12, at_once=3
    )
    assert len(list(texts)) == 9


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_damaged_weights_write_no_text(decoder: Checkpoint, damage: float) -> None:
    state = {name: tensor.clone() for name, tensor in decoder.state.items()}
    state["blocks.1.mlp.down.weight"][0, 0] = damage
    broken = StreamExecutor(replace(decoder, state=state), capacity_tokens=64)
    width = broken.subnet_ids[0]
    with pytest.raises(ValueError, match="the network's output is not finite: its weights"):
        next(generate(broken, PROMPT, subnet_id=width, max_tokens=2))
    with pytest.raises(ValueError, match="is not finite"):
        next(drawn_texts(broken, [3], subnet_id=width, count=1, max_tokens=2))
    assert broken.cache.table.sequences == ()
